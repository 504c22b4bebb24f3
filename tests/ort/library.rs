//! ONNX Runtime's library for tests.

use espalier_runtime::OrtLibrary;

/// The library; none where it is missing, which is said, and which with `CI=true` is a failure.
pub fn library() -> Option<&'static OrtLibrary> {
    match OrtLibrary::open(None) {
        Ok(library) => Some(library),
        Err(error) if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("{error}"),
        Err(error) => {
            eprintln!("not compared: {error}");
            None
        }
    }
}
