//! Which library is taken for ONNX Runtime, and what is said of one that cannot be.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use espalier_runtime::OrtLibrary;

use crate::args;
use crate::support::{Place, Said, assert_none, program, world};

/// Builds a shared library of this C; none where there is no compiler, which is said, and fails where CI=true.
fn library_of(place: &Place, name: &str, source: &str) -> Option<PathBuf> {
    let (file, library) = (place.path(&format!("{name}.c")), place.path(&format!("{name}.so")));
    fs::write(&file, source).expect("a source");
    let compiler = std::env::var_os("CC").unwrap_or("cc".into());
    match Command::new(&compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file).status() {
        Ok(status) if status.success() => Some(library),
        failed if std::env::var_os("CI").is_some_and(|ci| ci == "true") => panic!("{}: {failed:?}", compiler.display()),
        failed => {
            eprintln!("not tried: {} makes no library ({failed:?}); install a C compiler, or name one in CC", compiler.display());
            None
        }
    }
}

/// A library with the entry of ONNX Runtime that says it is of this version and has no interface.
fn stand_in(version: &str) -> String {
    format!(
        "static const void *api(unsigned version) {{ (void)version; return 0; }}\n\
         static const char *version(void) {{ return \"{version}\"; }}\n\
         static const struct {{ const void *(*api)(unsigned); const char *(*version)(void); }} base = {{ api, version }};\n\
         const void *OrtGetApiBase(void) {{ return &base; }}\n"
    )
}

/// A library whose interface has no functions.
const TOOLLESS: &str = "static const void *base[2] = { 0, 0 };\nconst void *OrtGetApiBase(void) { return base; }\n";

/// A library in which every function fails, with this reason.
const FAILING: &str = "static const void *fail(void) { return \"nothing works here\"; }\n\
     static const void *functions[1000];\n\
     static const void *api(unsigned version) { (void)version; for (int i = 0; i < 1000; i++) functions[i] = fail; return functions; }\n\
     static const char *version(void) { return \"1.18.0\"; }\n\
     static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = { api, version };\n\
     const void *OrtGetApiBase(void) { return &base; }\n";

#[test]
fn libraries_that_cannot_be_used_are_refused_with_a_sentence() {
    let (world, place) = (world(), Place::new());
    let cases = [
        ("old", stand_in("1.17.3"), "it is version 1.17.3, but 1.18 or a later one is needed"),
        ("ancient", stand_in("1.4"), "it is version 1.4, but 1.18 or a later one is needed"),
        ("next", stand_in("2.0.0"), "it is version 2.0.0, of generation 2, but one of generation 1 is needed, 1.18 or later"),
        ("hollow", stand_in("1.31.1"), "it says that it is version 1.31.1, but it does not give interface 18, which is needed"),
        (
            "baseless",
            "const void *OrtGetApiBase(void) { return 0; }\n".to_string(),
            "it is no ONNX Runtime: its OrtGetApiBase gives nothing",
        ),
        ("toolless", TOOLLESS.to_string(), "it is no ONNX Runtime: its OrtGetApiBase gives no functions"),
        ("wordless", stand_in("1.31.1").replace("\"1.31.1\"", "0"), "it is no ONNX Runtime: the name of its version is no text"),
        ("nameless", stand_in("unknown"), "it is version unknown, but 1.18 or a later one is needed"),
        ("other", "int other(void) { return 1; }\n".to_string(), "it is no ONNX Runtime"),
        ("unresolved", "int nowhere(void);\nint (*entry)(void) = nowhere;\n".to_string(), "the system's loader refuses it"),
    ];
    let mut faults = Vec::new();
    for (name, source, reason) in cases {
        let Some(library) = library_of(&place, name, &source) else { return };
        let command = args!["eval", world.model, "--data", world.corpus, "--engine", "ort", "--ort-lib", library];
        let refused = place.refuse(command, 1, &[&format!("{name}.so cannot be used as ONNX Runtime: {reason}"), "scripts/onnxruntime.sh"]);
        faults.extend(refused.into_iter().map(|fault| format!("{name}: {fault}")));
    }
    assert_none(faults);
}

/// In a process of its own, in which no other library has been loaded: the test calls itself with the libraries' folder in this variable.
const FOLDER: &str = "ESPALIER_TEST_LIBRARIES";

#[test]
fn a_library_in_which_nothing_works_is_kept_to_all_the_same() {
    if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
        return keep_to_the_first(&folder);
    }
    let place = Place::new();
    for name in ["first", "second"] {
        if library_of(&place, name, FAILING).is_none() {
            return;
        }
    }
    let mut command = program(&std::env::current_exe().expect("this program"));
    command.args(["--exact", "libraries::a_library_in_which_nothing_works_is_kept_to_all_the_same"]);
    let output = command.env(FOLDER, place.path("")).output().expect("this program starts");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn keep_to_the_first(folder: &Path) {
    let (first, second) = (folder.join("first.so"), folder.join("second.so"));
    let fails = format!("{} cannot be used as ONNX Runtime: nothing works here", first.display());
    let taken = format!("second.so cannot be used as ONNX Runtime: this process has loaded {} already", first.display());
    for (path, words) in [(Some(&first), &fails), (Some(&second), &taken), (Some(&first), &fails), (None, &fails)] {
        let refused = OrtLibrary::open(path.map(PathBuf::as_path)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains(words), "{path:?}: expected `{words}`, found: {refused}");
    }
}

/// A file where a library is looked for, which is none: the sentence that refuses it names it.
fn decoy(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).expect("a folder");
    let path = folder.join("libonnxruntime.so");
    fs::write(&path, "no library").expect("a file");
    path
}

#[test]
fn libraries_are_looked_for_in_the_order_that_is_promised() {
    let (world, place) = (world(), Place::new());
    // A program of its own, with nothing beside it yet, started in a folder with nothing in it.
    let (bin, work) = (place.path("bin/here"), place.path("work"));
    fs::create_dir_all(&bin).expect("a folder");
    fs::create_dir_all(&work).expect("a folder");
    let copy = bin.join("espalier");
    fs::copy(env!("CARGO_BIN_EXE_espalier"), &copy).expect("a copy of the program");
    let run = |variables: &[(&str, OsString)], more: &[OsString]| {
        let mut command = program(&copy);
        place.surround(&mut command);
        command.args(args!["eval", world.model, "--data", world.corpus, "--engine", "ort", "--threads", "1"]).args(more);
        command.current_dir(&work).env_remove("ORT_DYLIB_PATH").env_remove("LD_LIBRARY_PATH");
        let output = command.envs(variables.iter().map(|(name, value)| (name, value))).output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    let mut faults = Vec::new();
    let mut expect = |what: &str, said: Said, words: &[&str]| {
        faults.extend(said.faults(1, words).into_iter().map(|fault| format!("{what}: {fault}")));
    };
    let system = ["/usr/local/lib", "/usr/lib64", "/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let in_system = system
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libonnxruntime.so"));
    if !in_system {
        expect("nowhere", run(&[], &[]), &["ONNX Runtime was not found beside the program", "scripts/onnxruntime.sh", "--ort-lib"]);
    }
    // From the last place to the first: each goes before those that are there already.
    let path = decoy(&place.path("loader"));
    let loader = [("LD_LIBRARY_PATH", place.path("loader").into_os_string())];
    expect("LD_LIBRARY_PATH", run(&loader, &[]), &[&path.display().to_string(), "it is no shared library"]);
    let path = decoy(&work.join("target/onnxruntime"));
    expect("target", run(&loader, &[]), &[&path.display().to_string()]);
    let path = decoy(&bin);
    expect("beside the program", run(&loader, &[]), &[&path.display().to_string()]);
    let named = decoy(&place.path("named"));
    let variable = [("ORT_DYLIB_PATH", named.clone().into_os_string())];
    expect("ORT_DYLIB_PATH", run(&variable, &[]), &[&named.display().to_string()]);
    let path = decoy(&place.path("asked"));
    expect("--ort-lib", run(&variable, &args!["--ort-lib", path]), &[&path.display().to_string()]);
    // One that is named must do, even where another is found.
    let missing = [("ORT_DYLIB_PATH", place.path("missing.so").into_os_string())];
    expect("a missing one", run(&missing, &[]), &["missing.so cannot be used as ONNX Runtime: there is no such file"]);
    assert_none(faults);
}
