//! All targets on their seeds and on mutations of them, the same ones every time.

use std::path::Path;

use espalier_models::Artifact;

/// Mutations of every seed.
const MUTATIONS: usize = 200;

/// Every target by the name of its corpus.
const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("artifact", crate::artifact),
    ("safetensors", crate::safetensors),
    ("config", crate::config),
    ("pytorch", crate::pytorch),
    ("pickle", crate::pickle),
    ("gguf", crate::gguf),
    ("onnx", crate::onnx),
    ("sidecar", crate::sidecar),
    ("mat", crate::mat),
    ("wav", crate::wav),
    ("npy", crate::npy),
    ("csv", crate::csv),
    ("tokenizer", crate::tokenizer),
    ("vocabulary", crate::vocabulary),
];

/// Values that lengths and counts go wrong at.
const EDGES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }
}

/// One to four changes: a byte, an edge value over 1 to 8 bytes, a cut, a repeated or removed piece.
fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let length = random.below(16).min(bytes.len() - at);
        match random.below(6) {
            0 | 1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 | 3 => {
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => drop(bytes.drain(at..at + length)),
            _ if random.below(4) == 0 => bytes.truncate(at),
            _ => {
                let piece = bytes[at..at + length].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

#[test]
fn no_seed_and_no_mutation_of_one_breaks_a_reader() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut seeds: Vec<_> = std::fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        seeds.retain(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with("seed-")));
        seeds.sort();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for path in seeds {
            let seed = std::fs::read(&path).unwrap();
            println!("{}", path.display());
            target(&seed);
            let mut random = Random(seed.len() as u64);
            for number in 0..MUTATIONS {
                println!("mutation {number}");
                target(&mutated(&seed, &mut random));
            }
        }
    }
}

/// A seed of an older format version would be refused in its header, and nothing behind that would be tested; `artifact_seed` writes it anew.
#[test]
fn artifact_seeds_are_sound_artifacts_of_the_current_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/artifact/seed-gpt2");
    let seed = std::fs::read(&path).unwrap();
    Artifact::open(&path).unwrap().verify().unwrap();
    assert_eq!(crate::with_checksums(seed.clone()), seed, "the checksums and the length that a sound artifact has are its own");
}

/// Writes the seed of the corpus `artifact`.
#[test]
#[ignore = "makes a file of the corpus"]
fn artifact_seed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/artifact");
    std::fs::create_dir_all(&corpus).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), crate::CONFIG).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), crate::SAFETENSORS).unwrap();
    crate::import(folder.path(), &corpus.join("seed-gpt2"), None, &mut |_, _| {}).unwrap();
}
