//! Which files the kernels are compiled from and their hashes; shared with build.rs.

use std::fmt::Write;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

/// The unit that compilers are given.
pub const UNIT: &str = "kernels.cu";

/// The files in `folder` that [`UNIT`] consists of, in the order in which they are included, itself last.
///
/// # Errors
/// Where one cannot be read.
pub fn files(folder: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    visit(folder, UNIT, &mut found)?;
    Ok(found)
}

fn visit(folder: &Path, name: &str, found: &mut Vec<String>) -> io::Result<()> {
    let text = std::fs::read_to_string(folder.join(name))?;
    for included in text.lines().filter_map(included) {
        // The emulator's header, which no compiler for a device sees, stands outside the folder.
        let beside = !included.contains('/') && folder.join(included).is_file();
        if beside && included != name && !found.iter().any(|file| file == included) {
            visit(folder, included, found)?;
        }
    }
    if !found.iter().any(|file| file == name) {
        found.push(name.to_owned());
    }
    Ok(())
}

/// The file that a line `#include "FILE"` names.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split_once('"').map(|(file, _)| file)
}

/// A line a file, in the order given, as sha256sum prints it.
///
/// # Errors
/// Where one cannot be read.
pub fn hashes(folder: &Path, files: &[String]) -> io::Result<String> {
    let mut lines = String::new();
    for name in files {
        let hash = hex(&std::fs::read(folder.join(name))?);
        writeln!(lines, "{hash}  {name}").expect("a string takes what is written");
    }
    Ok(lines)
}

/// SHA-256 in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a string takes what is written");
        digits
    })
}

/// The files of two listings that are not the same in both, in the order of `now` and then of `then`.
pub fn changed<'a>(then: &'a str, now: &'a str) -> Vec<&'a str> {
    let only = |listing: &'a str, other: &'a str| {
        listing.lines().filter(move |line| !other.lines().any(|known| known == *line)).filter_map(|line| line.split_once("  "))
    };
    let mut files = Vec::new();
    for (_, file) in only(now, then).chain(only(then, now)) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn files_are_those_that_the_unit_includes_once_each_in_order() {
        let folder = folder(&[
            ("kernels.cu", "#include \"prelude.cuh\"\n  # include \"norm.cu\"\n#include \"loss.cu\"\n// #include \"old.cu\"\n"),
            ("norm.cu", "#include \"prelude.cuh\"\n"),
            ("loss.cu", "#include \"prelude.cuh\"\n#include \"norm.cu\"\n"),
            ("prelude.cuh", "#pragma once\n#include \"emulator.hpp\"\n#include <cstdint>\n"),
            ("old.cu", ""),
        ]);
        assert_eq!(files(folder.path()).unwrap(), ["prelude.cuh", "norm.cu", "loss.cu", "kernels.cu"]);
    }

    #[test]
    fn a_listing_is_what_sha256sum_prints() {
        let folder = folder(&[("kernels.cu", "abc")]);
        let listing = hashes(folder.path(), &files(folder.path()).unwrap()).unwrap();
        assert_eq!(listing, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  kernels.cu\n");
    }

    #[test]
    fn changed_added_and_removed_files_are_named() {
        let then = "1  prelude.cuh\n2  norm.cu\n3  old.cu\n4  kernels.cu\n";
        assert_eq!(changed(then, then), [""; 0]);
        assert_eq!(changed(then, "1  prelude.cuh\n5  norm.cu\n6  new.cu\n4  kernels.cu\n"), ["norm.cu", "new.cu", "old.cu"]);
    }
}
