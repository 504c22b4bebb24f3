//! Embeds the device images of kernels/images in the crate espalier-kernels, which runs this script where its feature `cuda` is on.
//!
//! The images must be of the sources in kernels/src/cuda. ESPALIER_CUDA_BUILD=1 compiles the sources instead, with the nvcc that NVCC
//! names, of CUDA_HOME, of PATH, or of target/cuda, which scripts/cuda.sh fills; what it makes is embedded before the others.

#[cfg(feature = "cuda")]
#[path = "kernels/src/cuda/images/sources.rs"]
mod sources;

#[cfg(feature = "cuda")]
fn main() {
    if let Err(message) = cuda::embed() {
        message.lines().for_each(|line| println!("cargo::error={line}"));
    }
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo::rerun-if-changed=../build.rs");
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::env;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output};

    use super::sources;

    /// What is compiled for, as far as nvcc knows it, and the architecture of the PTX.
    const ARCHITECTURES: [u32; 9] = [80, 86, 87, 89, 90, 100, 110, 120, 121];
    const PTX_ARCHITECTURE: u32 = 80;

    type Result<T> = std::result::Result<T, String>;

    /// An image: its name, the CUDA version of what compiled it, its codes as Rust, whether xz packed it, and where it is.
    struct Image {
        name: String,
        toolkit: (u32, u32),
        codes: Vec<String>,
        packed: bool,
        path: PathBuf,
    }

    /// Writes cuda_images.rs into OUT_DIR: the sources, their hash and the images.
    pub fn embed() -> Result<()> {
        let kernels = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
        let out = PathBuf::from(variable("OUT_DIR")?);
        let (folder, images) = (kernels.join("src/cuda"), kernels.join("images"));
        println!("cargo::rerun-if-env-changed=ESPALIER_CUDA_BUILD");
        let files = sources::files(&folder).map_err(|error| format!("the kernels in {} cannot be read: {error}", folder.display()))?;
        files.iter().for_each(|file| watch(&folder.join(file)));
        let now =
            sources::hashes(&folder, &files).map_err(|error| format!("the kernels in {} cannot be read: {error}", folder.display()))?;
        let listing = images.join("sources.sha256");
        watch(&listing);
        let then = std::fs::read_to_string(&listing).map_err(|error| format!("{} cannot be read: {error}", listing.display()))?;
        let compile = match env::var("ESPALIER_CUDA_BUILD").as_deref() {
            Err(_) | Ok("" | "0") => false,
            Ok("1") => true,
            Ok(other) => return Err(format!("ESPALIER_CUDA_BUILD is `{other}`; it takes 1, to compile the CUDA kernels, or 0")),
        };
        let mut embedded = Vec::new();
        if compile {
            embedded.push(compiled(&folder, &out)?);
        }
        if then == now {
            embedded.append(&mut listed(&images)?);
        } else if !compile {
            return Err(format!(
                "the device images in kernels/images are not of the kernels in kernels/src/cuda: {} changed since they were compiled; run \
                 scripts/cuda.sh --compile, or build with ESPALIER_CUDA_BUILD=1 where nvcc is installed",
                sources::changed(&then, &now).join(", ")
            ));
        }
        write(&out.join("cuda_images.rs"), &folder, &files, &sources::hex(now.as_bytes()), &embedded)
    }

    fn write(to: &Path, folder: &Path, files: &[String], hash: &str, images: &[Image]) -> Result<()> {
        let mut text = format!("pub(crate) const SOURCES_HASH: &str = {hash:?};\npub(crate) const SOURCES: &[(&str, &str)] = &[\n");
        let fine = "a string takes what is written";
        for file in files {
            writeln!(text, "    ({file:?}, include_str!({:?})),", folder.join(file)).expect(fine);
        }
        text.push_str("];\nconst IMAGES: &[Image] = &[\n");
        for Image { name, toolkit, codes, packed, path } in images {
            let codes = codes.join(", ");
            writeln!(text, "    Image {{ name: {name:?}, toolkit: {toolkit:?}, codes: &[{codes}], packed: {packed},").expect(fine);
            writeln!(text, "        bytes: include_bytes!({path:?}) }},").expect(fine);
        }
        text.push_str("];\n");
        std::fs::write(to, text).map_err(|error| format!("{} cannot be written: {error}", to.display()))
    }

    /// The images that index.tsv lists: a line of titles, then file, CUDA version of the compiler and codes.
    fn listed(folder: &Path) -> Result<Vec<Image>> {
        let index = folder.join("index.tsv");
        watch(&index);
        let text = std::fs::read_to_string(&index).map_err(|error| format!("{} cannot be read: {error}", index.display()))?;
        let image = |line: &str| {
            let mut fields = line.split('\t');
            let (name, cuda, codes) = (fields.next()?, fields.next()?, fields.next()?);
            let path = folder.join(name);
            watch(&path);
            let codes = codes.split(' ').map(code).collect::<Option<_>>()?;
            Some(Image { name: name.to_owned(), toolkit: version(cuda)?, codes, packed: true, path })
        };
        let wrong = |line| format!("{} has a line of another form: {line}; run scripts/cuda.sh --compile", index.display());
        text.lines().skip(1).map(|line| image(line).ok_or_else(|| wrong(line))).collect()
    }

    /// `sm_87` or `compute_80` as Rust.
    fn code(name: &str) -> Option<String> {
        let (kind, architecture) = name.split_once('_')?;
        let architecture: u32 = architecture.parse().ok()?;
        match kind {
            "sm" => Some(format!("Code::Cubin({architecture})")),
            "compute" => Some(format!("Code::Ptx({architecture})")),
            _ => None,
        }
    }

    /// Compiles the unit into a fat binary for what the nvcc that is found knows of.
    fn compiled(folder: &Path, out: &Path) -> Result<Image> {
        let nvcc = nvcc(folder)?;
        let said = text(run(Command::new(&nvcc).arg("--version"))?);
        let toolkit = release(&said).ok_or_else(|| format!("{} --version prints no release: {said}", nvcc.display()))?;
        let known = text(run(Command::new(&nvcc).arg("--list-gpu-code"))?);
        let known: Vec<u32> = known.lines().filter_map(|line| line.trim().strip_prefix("sm_")?.parse().ok()).collect();
        let path = out.join("compiled.fatbin");
        let mut command = Command::new(&nvcc);
        command.current_dir(folder).args(["-std=c++17", "-fatbin", "--threads=0", "-Xfatbin=-compress-all", "-o"]).arg(&path);
        let mut codes = Vec::new();
        for architecture in ARCHITECTURES.iter().filter(|architecture| known.contains(architecture)) {
            command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
            codes.push(format!("Code::Cubin({architecture})"));
        }
        command.arg(format!("-gencode=arch=compute_{PTX_ARCHITECTURE},code=compute_{PTX_ARCHITECTURE}"));
        codes.push(format!("Code::Ptx({PTX_ARCHITECTURE})"));
        run(command.arg(sources::UNIT))?;
        let name = format!("the image that nvcc {}.{} compiled", toolkit.0, toolkit.1);
        Ok(Image { name, toolkit, codes, packed: false, path })
    }

    /// Where nvcc is.
    fn nvcc(folder: &Path) -> Result<PathBuf> {
        for name in ["NVCC", "CUDA_HOME", "PATH"] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        if let Some(nvcc) = env::var_os("NVCC").filter(|path| !path.is_empty()) {
            return Ok(nvcc.into());
        }
        let mut places: Vec<PathBuf> = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin")).into_iter().collect();
        places.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
        places.push(folder.join("../../../target/cuda/nvidia/cu13/bin"));
        places.iter().map(|place| place.join("nvcc")).find(|path| path.is_file()).ok_or_else(|| {
            "ESPALIER_CUDA_BUILD=1 needs nvcc, which is neither in NVCC, CUDA_HOME/bin and PATH nor in target/cuda; install the CUDA toolkit, \
             or run scripts/cuda.sh"
                .to_owned()
        })
    }

    /// `(13, 5)` of `Cuda compilation tools, release 13.5, V13.5.37`.
    fn release(said: &str) -> Option<(u32, u32)> {
        said.split_once("release ").and_then(|(_, rest)| version(rest.split(',').next()?.trim()))
    }

    fn version(text: &str) -> Option<(u32, u32)> {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    }

    fn run(command: &mut Command) -> Result<Output> {
        let output = command.output().map_err(|error| format!("{:?} cannot be run: {error}", command.get_program()))?;
        if !output.status.success() {
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            return Err(format!("{command:?} failed ({}):\n{}", output.status, String::from_utf8_lossy(&said)));
        }
        Ok(output)
    }

    fn text(output: Output) -> String {
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn watch(path: &Path) {
        println!("cargo::rerun-if-changed={}", path.display());
    }

    fn variable(name: &str) -> Result<String> {
        env::var(name).map_err(|_| format!("{name} is not set; cargo sets it for build scripts"))
    }
}
