//! Which image a device is given.

use std::cell::RefCell;
use std::path::Path;

use super::*;

const NEW: &[Code] = &[
    Code::Cubin(80),
    Code::Cubin(87),
    Code::Cubin(86),
    Code::Cubin(89),
    Code::Cubin(90),
    Code::Cubin(100),
    Code::Cubin(110),
    Code::Cubin(120),
    Code::Cubin(121),
];
const OLD: &[Code] =
    &[Code::Cubin(80), Code::Cubin(87), Code::Cubin(86), Code::Cubin(89), Code::Cubin(90), Code::Cubin(120), Code::Cubin(121)];
const PTX: &[Code] = &[Code::Ptx(80)];

/// Images with the codes that those of the repository have.
fn images() -> [Image; 3] {
    let image = |name: &'static str, toolkit, codes| Image { name, toolkit, codes, packed: false, bytes: name.as_bytes() };
    [image("new", (13, 5), NEW), image("old", (12, 9), OLD), image("ptx", (12, 9), PTX)]
}

fn no_compiler() -> Result<Compiler, String> {
    Err("no compiler here".to_owned())
}

/// Device, CUDA version of the driver, compute capability, what is tried.
type Case = (&'static str, (u32, u32), (u32, u32), &'static [&'static str]);

#[test]
fn every_device_is_offered_what_its_driver_can_load_machine_code_first() {
    let cases: [Case; 15] = [
        ("A100, CUDA 13.0", (13, 0), (8, 0), &["new sm_80", "old sm_80", "ptx compute_80"]),
        ("A100, CUDA 12.0", (12, 0), (8, 0), &["old sm_80"]),
        ("A100, CUDA 12.9", (12, 9), (8, 0), &["old sm_80", "ptx compute_80"]),
        ("A100, a later major version", (14, 0), (8, 0), &["new sm_80", "old sm_80", "ptx compute_80"]),
        ("Orin, JetPack 6", (12, 6), (8, 7), &["old sm_87"]),
        ("Orin, CUDA 13", (13, 0), (8, 7), &["new sm_87", "old sm_87", "ptx compute_80"]),
        ("H100, CUDA 13.5", (13, 5), (9, 0), &["new sm_90", "old sm_90", "ptx compute_80"]),
        ("B300, by the machine code of B200", (13, 0), (10, 3), &["new sm_100", "ptx compute_80"]),
        ("B200, CUDA 12.9, by PTX", (12, 9), (10, 0), &["ptx compute_80"]),
        ("B200, CUDA 12.8", (12, 8), (10, 0), &[]),
        ("Thor", (13, 0), (11, 0), &["new sm_110", "ptx compute_80"]),
        ("Spark", (13, 0), (12, 1), &["new sm_121", "old sm_121", "ptx compute_80"]),
        ("a later generation", (14, 0), (13, 0), &["ptx compute_80"]),
        ("Turing", (13, 0), (7, 5), &[]),
        ("CUDA 11", (11, 8), (8, 6), &[]),
    ];
    let images = images();
    let wrong: Vec<_> = cases
        .iter()
        .filter_map(|&(device, driver, capability, expected)| {
            let (chosen, rejections) = choose(&images, Target { driver, capability });
            let found: Vec<_> = chosen.iter().map(|(image, code)| format!("{} {}", image.name, code.name())).collect();
            (found != expected || found.len() + rejections.len() != images.len()).then_some((device, expected, found, rejections))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ptx_is_tried_after_the_machine_code_of_an_older_compiler() {
    let [new, old, _] = images();
    let (chosen, _) = choose(&[Image { codes: PTX, ..new }, old], Target { driver: (13, 5), capability: (8, 7) });
    assert_eq!(chosen, [(old, Code::Cubin(87)), (Image { codes: PTX, ..new }, Code::Ptx(80))]);
}

#[test]
fn a_rejection_says_what_is_needed_and_what_is_there() {
    let said = |driver, capability| choose(&images(), Target { driver, capability }).1.iter().map(Rejection::to_string).collect::<Vec<_>>();
    assert_eq!(
        said((12, 6), (8, 7)),
        ["new: needs a driver of CUDA 13.0; this one is of 12.6", "ptx: needs a driver of CUDA 12.9; this one is of 12.6"]
    );
    assert_eq!(said((13, 0), (7, 5))[0], "new: has no code for compute capability 7.5");
}

#[test]
fn an_image_that_the_driver_refuses_gives_way_to_the_next_and_the_sources_come_last() {
    let target = Target { driver: (13, 0), capability: (8, 7) };
    let images = images();
    let offered = RefCell::new(Vec::new());
    let takes = |wanted: Option<&'static str>| {
        let (images, offered) = (&images, &offered);
        move |code: &[u8]| {
            let name = images.iter().find(|image| image.bytes == code).unwrap().name;
            offered.borrow_mut().push(name);
            if Some(name) == wanted { Ok(name) } else { Err(Refusal::Image(format!("not {name}"))) }
        }
    };
    assert_eq!(first_loaded(&images, target, takes(Some("old")), no_compiler).unwrap(), ("sm_87 of old".to_owned(), "old"));
    assert_eq!(offered.take(), ["new", "old"]);
    let Err(NotLoaded::Rejected(rejections)) = first_loaded(&images, target, takes(None), no_compiler) else { panic!("not rejected") };
    assert_eq!(offered.take(), ["new", "old", "ptx"]);
    let said: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
    assert_eq!(said, ["sm_87 of new: not new", "sm_87 of old: not old", "compute_80 of ptx: not ptx", "the sources: no compiler here"]);
}

#[test]
fn a_device_that_is_full_or_fails_is_offered_no_further_image() {
    let target = Target { driver: (13, 0), capability: (8, 7) };
    let cases = [
        (Refusal::Full("no memory".to_owned()), NotLoaded::Full("sm_87 of new: no memory".to_owned())),
        (Refusal::DeviceFailed("gone".to_owned()), NotLoaded::DeviceFailed("sm_87 of new: gone".to_owned())),
    ];
    for (refusal, expected) in cases {
        let offered = RefCell::new(0);
        let load = |_: &[u8]| -> Result<(), Refusal> {
            *offered.borrow_mut() += 1;
            Err(refusal.clone())
        };
        assert_eq!((first_loaded(&images(), target, load, no_compiler), offered.take()), (Err(expected), 1));
    }
}

#[test]
fn an_image_that_cannot_be_unpacked_is_passed_over() {
    let [new, old, _] = images();
    let target = Target { driver: (13, 0), capability: (8, 7) };
    let (name, bytes) = first_loaded(&[Image { packed: true, ..new }, old], target, |code| Ok(code.to_vec()), no_compiler).unwrap();
    assert_eq!((name.as_str(), &bytes[..]), ("sm_87 of old", old.bytes));
}

#[test]
fn the_images_of_the_repository_hold_every_code_that_they_list() {
    let packed: Vec<_> = IMAGES.iter().filter(|image| image.packed).collect();
    let listed: Vec<_> = packed.iter().map(|image| (image.name, image.codes)).collect();
    assert_eq!(listed, [("cuda13.fatbin.xz", NEW), ("cuda12.fatbin.xz", OLD), ("ptx.fatbin.xz", PTX)]);
    for image in packed {
        for code in image.codes {
            let bytes = image.unpacked(*code).unwrap();
            let as_it_should = match code {
                Code::Cubin(_) => bytes.starts_with(b"\x7fELF"),
                Code::Ptx(_) => bytes.iter().position(|byte| *byte == 0) == Some(bytes.len() - 1),
            };
            assert!(as_it_should, "{} of {}", code.name(), image.name);
        }
        assert!(image.unpacked(Code::Cubin(75)).is_err());
    }
    let bytes: usize = IMAGES.iter().map(|image| image.bytes.len()).sum();
    assert!(bytes <= 4 << 20, "the images have {bytes} bytes");
}

#[test]
fn the_binary_holds_the_sources_of_its_kernels() {
    let last = SOURCES.last().unwrap();
    assert_eq!((last.0, SOURCES_HASH.len()), ("kernels.cu", 64));
    for (name, text) in SOURCES {
        assert_eq!(std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda").join(name)).unwrap(), *text);
    }
}

const SMALL: Sources = (&[("kernels.cu", "extern \"C\" __global__ void one(float* x) { *x = 1; }")], "0123456789abcdef");

/// NVRTC as scripts/cuda.sh brings it; none where it did not.
fn pinned_compiler(folder: &Path, target: Target) -> Option<Compiler> {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cuda/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("not tested: scripts/cuda.sh brings NVRTC for x86-64");
        return None;
    }
    if !library.is_file() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "{} is missing; scripts/cuda.sh brings it", library.display());
        eprintln!("not tested: {} is missing; scripts/cuda.sh brings it", library.display());
        return None;
    }
    Some(Compiler::open(&[library], Some(folder.to_owned()), SMALL, target).unwrap())
}

#[test]
fn nvrtc_compiles_the_sources_once_and_again_where_what_was_kept_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let Some(compiler) = pinned_compiler(folder.path(), Target { driver: (12, 9), capability: (8, 7) }) else { return };
    let load = |code: &[u8]| if code.starts_with(b"\x7fELF") { Ok(code.to_vec()) } else { Err(Refusal::Image("no ELF".to_owned())) };
    let (name, code) = compiler.load(load).unwrap();
    assert_eq!(name, "compiled for sm_87 by NVRTC 12.9");
    let (kept, again) = compiler.load(load).unwrap();
    assert_eq!(kept, format!("{name}, kept in {}", folder.path().display()));
    assert!(code == again);
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    std::fs::write(&files[0], b"broken").unwrap();
    let (third, _) = compiler.load(load).unwrap();
    assert_eq!(third, name);
    assert_eq!(compiler.load(load).unwrap().0, kept);
}

#[test]
fn a_device_that_nvrtc_does_not_know_gets_ptx_and_an_unknown_library_is_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("libnvrtc.so");
    let target = Target { driver: (13, 0), capability: (14, 0) };
    let reason = Compiler::open(std::slice::from_ref(&missing), None, SMALL, target).err().unwrap();
    assert!(reason.contains("not installed") && reason.contains(&missing.display().to_string()), "{reason}");
    let Some(compiler) = pinned_compiler(folder.path(), target) else { return };
    assert_eq!(compiler.code, Code::Ptx(121));
    let code = compiler.nvrtc.compile(SMALL.0, compiler.code).unwrap();
    assert!(code.starts_with(b"//") && code.ends_with(b"\0"));
    let refused = compiler.nvrtc.compile(&[("kernels.cu", "nonsense")], compiler.code).unwrap_err();
    assert!(refused.contains("NVRTC_ERROR_COMPILATION") && refused.contains("kernels.cu(1)"), "{refused}");
}
