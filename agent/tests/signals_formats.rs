//! Every format reads what it says it reads, refuses the rest with a sentence, and never panics.

use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::LazyLock;

use espalier_agent::signals::mat::MatFile;
use espalier_agent::signals::{Column, ReadOptions, SignalError, csv, npy, raw, read_recording, read_recording_with, summarise, wav};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use proptest::prelude::*;

/// Writes MATLAB v5 elements in either byte order.
struct MatWriter {
    big: bool,
    bytes: Vec<u8>,
}

impl MatWriter {
    fn new(big: bool) -> Self {
        let mut bytes = b"MATLAB 5.0 MAT-file, written by a test".to_vec();
        bytes.resize(124, b' ');
        bytes.extend(if big { [1, 0, b'M', b'I'] } else { [0, 1, b'I', b'M'] });
        Self { big, bytes }
    }

    fn u32(&self, value: u32) -> [u8; 4] {
        if self.big { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    fn element(&self, kind: u32, body: &[u8], small: bool) -> Vec<u8> {
        let mut out = Vec::new();
        if small {
            out.extend(self.u32((body.len() as u32) << 16 | kind));
            out.extend(body);
            out.resize(8, 0);
        } else {
            out.extend(self.u32(kind));
            out.extend(self.u32(body.len() as u32));
            out.extend(body);
            out.resize(out.len().next_multiple_of(8), 0);
        }
        out
    }

    fn array(&self, name: &str, class: u32, dims: [u32; 2], storage: u32, numbers: &[u8]) -> Vec<u8> {
        let mut body = self.element(6, &[self.u32(class), self.u32(0)].concat(), false);
        body.extend(self.element(5, &dims.map(|dim| self.u32(dim)).concat(), false));
        body.extend(self.element(1, name.as_bytes(), name.len() <= 4));
        body.extend(self.element(storage, numbers, numbers.len() <= 4 && !numbers.is_empty()));
        self.element(14, &body, false)
    }

    fn push(&mut self, element: &[u8], compressed: bool) {
        if compressed {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(element).unwrap();
            let body = encoder.finish().unwrap();
            let (kind, length) = (self.u32(15), self.u32(body.len() as u32));
            self.bytes.extend([kind, length].concat());
            self.bytes.extend(body);
        } else {
            self.bytes.extend(element);
        }
    }
}

fn cwru_file(big: bool, compressed: bool) -> Vec<u8> {
    let mut mat = MatWriter::new(big);
    let doubles: Vec<u8> =
        (0..20_000).flat_map(|i| if big { (f64::from(i) / 8.0).to_be_bytes() } else { (f64::from(i) / 8.0).to_le_bytes() }).collect();
    let rpm = if big { 1772u16.to_be_bytes() } else { 1772u16.to_le_bytes() };
    for element in [
        mat.array("text", 4, [1, 3], 4, &[0, 97, 0, 98, 0, 99]),
        mat.array("X106_DE_time", 6, [20_000, 1], 9, &doubles),
        mat.array("X106_FE_time", 6, [1, 1], 9, &doubles[..8]),
        mat.array("X106RPM", 6, [1, 1], 4, &rpm),
    ] {
        mat.push(&element, compressed);
    }
    mat.bytes
}

#[test]
fn mat_files_of_both_byte_orders_read_plain_and_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let mut failures = Vec::new();
    for (big, compressed) in [(false, false), (false, true), (true, false), (true, true)] {
        let path = folder.path().join("IR007_1hp_106.mat");
        std::fs::write(&path, cwru_file(big, compressed)).unwrap();
        match read_recording(&path) {
            Ok(got) => {
                let right = got.samples.len() == 20_000 && got.samples.iter().enumerate().all(|(i, value)| *value == i as f32 / 8.0);
                let told = (got.signal.as_deref(), got.rpm, got.class.as_deref(), got.load_hp, got.sample_rate_hz);
                if !right || told != (Some("X106_DE_time"), Some(1772.0), Some("IR"), Some(1), Some(12_000.0)) {
                    failures.push(format!("big {big}, compressed {compressed}: {told:?}, {} samples", got.samples.len()));
                }
                let summary = summarise(&path, &ReadOptions::default()).unwrap();
                assert_eq!((summary.samples, summary.rpm), (20_000, Some(1772.0)));
            }
            Err(error) => failures.push(format!("big {big}, compressed {compressed}: {error}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_numeric_storage_type_of_mat_files_converts() {
    let mut failures = Vec::new();
    macro_rules! check {
        ($($kind:literal $number:ty),*) => {$(
            for big in [false, true] {
                let values: [$number; 3] = [1 as $number, 7 as $number, 100 as $number];
                let bytes: Vec<u8> = values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect();
                let mut mat = MatWriter::new(big);
                let array = mat.array("Data", 6, [1, 3], $kind, &bytes);
                mat.push(&array, false);
                let got = MatFile::open(Cursor::new(mat.bytes), Path::new("t.mat")).and_then(|mut file| file.read(0));
                if !matches!(&got, Ok(samples) if samples == &[1.0, 7.0, 100.0]) {
                    failures.push(format!("{} big {big}: {got:?}", stringify!($number)));
                }
            }
        )*};
    }
    check!(1 i8, 2 u8, 3 i16, 4 u16, 5 i32, 6 u32, 7 f32, 9 f64, 12 i64, 13 u64);
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The sentence of the error, or what was read by mistake.
fn refusal<T: std::fmt::Debug>(result: Result<T, SignalError>) -> String {
    match result {
        Ok(value) => format!("read without an error: {value:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mat_files_that_cannot_be_read_say_why() {
    let open = |bytes: Vec<u8>| MatFile::open(Cursor::new(bytes), Path::new("x.mat")).and_then(|mut file| file.read(0));
    let mut newer = b"MATLAB 7.3 MAT-file".to_vec();
    newer.resize(600, b' ');
    let mut truncated = cwru_file(false, false);
    truncated.truncate(5000);
    let mut corrupt = cwru_file(false, true);
    let middle = corrupt.len() / 2;
    corrupt[middle..middle + 200].fill(0x55);
    let mut complex = MatWriter::new(false);
    let array = complex.array("Data", 6 | 0x0800, [2, 1], 9, &[0; 16]);
    complex.push(&array, false);
    let mut lying = MatWriter::new(false);
    let array = lying.array("Data", 6, [200_000_000, 1], 9, &[0; 16]);
    lying.push(&array, true);
    let mut huge = MatWriter::new(false);
    let array = huge.array("Data", 6, [i32::MAX as u32, i32::MAX as u32], 9, &[0; 16]);
    huge.push(&array, false);
    let mut bomb = MatWriter::new(false);
    let mut claim = bomb.array("Data", 6, [2, 1], 9, &[0; 16]);
    claim[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    bomb.push(&claim, true);
    let text = {
        let mut mat = MatWriter::new(false);
        let array = mat.array("text", 4, [1, 2], 4, &[97, 0, 98, 0]);
        mat.push(&array, false);
        mat.bytes
    };
    let cases = [
        (newer, "save -v7"),
        (b"hello".to_vec(), "5 bytes"),
        (truncated, "at most the"),
        (corrupt, "x.mat"),
        (complex.bytes, "not real, dense and numeric"),
        (lying.bytes, "200000000 numbers of 8 bytes"),
        (huge.bytes, "more than the limit"),
        (bomb.bytes, "when inflated"),
        (text, "not real, dense and numeric"),
    ];
    let mut failures = Vec::new();
    for (index, (bytes, wanted)) in cases.into_iter().enumerate() {
        let got = refusal(open(bytes).map(|samples| samples.len()));
        if !got.contains(wanted) || got.starts_with("read") {
            failures.push(format!("case {index}: `{got}` lacks `{wanted}`"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn an_unclear_choice_of_array_lists_the_arrays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.mat");
    let mut mat = MatWriter::new(false);
    for name in ["left", "right"] {
        let array = mat.array(name, 7, [1, 2], 7, &[1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat());
        mat.push(&array, false);
    }
    std::fs::write(&path, mat.bytes).unwrap();
    let sentence = refusal(read_recording(&path));
    assert!(sentence.contains("left [1, 2], right [1, 2]"), "{sentence}");
    let options = ReadOptions { array: Some("right".into()), ..ReadOptions::default() };
    assert_eq!(read_recording_with(&path, &options).unwrap().samples, [1.0, 2.0]);
}

#[test]
fn csv_tables_read_by_default_name_and_position() {
    let name = |name: &str| Some(Column::Name(name.into()));
    let cases: [(&str, &str, Option<Column>, &[f32]); 9] = [
        ("bare numbers", "1\n2.5\n-3e2\n", None, &[1.0, 2.5, -300.0]),
        ("a header", "vibration\n1\n2\n", None, &[1.0, 2.0]),
        ("a clock first", "time,acc\n0.0,5\n0.1,6\n", None, &[5.0, 6.0]),
        ("text first", "label,acc\na,5\nb,6\n", None, &[5.0, 6.0]),
        ("semicolons, CRLF", "t;x;y\r\n0;1;2\r\n1;3;4\r\n", name("y"), &[2.0, 4.0]),
        ("tabs", "1\t2\n3\t4\n", Some(Column::Index(1)), &[2.0, 4.0]),
        ("quotes and a comma in the header", "\"a, b\",\"c\"\n1,2\n3,4\n", name("c"), &[2.0, 4.0]),
        ("byte order mark", "\u{feff}1\n2\n", None, &[1.0, 2.0]),
        ("comments and no last line end", "# made by x, y\n1\n2", None, &[1.0, 2.0]),
    ];
    let mut failures = Vec::new();
    for (case, text, column, wanted) in cases {
        match csv::read(text.as_bytes(), Path::new("x.csv"), column.as_ref()) {
            Ok((got, _)) if got == wanted => {}
            other => failures.push(format!("{case}: {other:?}")),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn broken_csv_tables_name_the_line() {
    let long = "1".repeat(3 << 20);
    let open_quote = format!("x\n1\n\"{}", "2\n".repeat(2 << 20));
    let cases = [
        ("NaN", "x\n1\nNaN\n", None, "line 3, x: `NaN`"),
        ("infinite", "1\n1e99\n", None, "line 2, column 0"),
        ("text later", "1\noops\n", None, "line 2, column 0: `oops`"),
        ("a short line", "1,2\n3\n", Some(Column::Index(1)), "line 2"),
        ("no such name", "a,b\n1,2\n", Some(Column::Name("c".into())), "the columns a, b"),
        ("no such position", "1,2\n", Some(Column::Index(2)), "2 columns"),
        ("no numbers", "a,b\nc,d\n", None, "no column of numbers"),
        ("empty", "", None, "an empty file"),
        ("header alone", "a,b\n", None, "a header without data"),
        ("one endless line", long.as_str(), None, "more than 1048576 bytes"),
        ("an open quote", open_quote.as_str(), None, "more than 1048576 bytes"),
    ];
    let mut failures = Vec::new();
    for (case, text, column, wanted) in cases {
        let got = refusal(csv::read(text.as_bytes(), Path::new("x.csv"), column.as_ref()).map(|(samples, _)| samples.len()));
        if !got.contains(wanted) {
            failures.push(format!("{case}: `{got}` lacks `{wanted}`"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn wav_bytes(format: hound::SampleFormat, bits: u16, channels: u16) -> Vec<u8> {
    let spec = hound::WavSpec { channels, sample_rate: 12_000, bits_per_sample: bits, sample_format: format };
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
    for i in 0..100i32 {
        for channel in 0..i32::from(channels) {
            match format {
                hound::SampleFormat::Float => writer.write_sample((i - 50) as f32 / 64.0 * (channel + 1) as f32).unwrap(),
                hound::SampleFormat::Int => writer.write_sample((i - 50) * (channel + 1) * (1 << (bits - 8))).unwrap(),
            }
        }
    }
    writer.finalize().unwrap();
    bytes.into_inner()
}

#[test]
fn wav_files_of_each_depth_read_either_channel() {
    let mut failures = Vec::new();
    for (format, bits) in
        [(hound::SampleFormat::Int, 16), (hound::SampleFormat::Int, 24), (hound::SampleFormat::Int, 32), (hound::SampleFormat::Float, 32)]
    {
        let bytes = wav_bytes(format, bits, 2);
        for channel in [None, Some(1)] {
            let unit = if format == hound::SampleFormat::Float { 64.0 } else { 128.0 };
            let times = f32::from(channel.unwrap_or(0) + 1);
            let wanted: Vec<f32> = (0..100).map(|i| (i - 50) as f32 / unit * times).collect();
            match wav::read(bytes.as_slice(), Path::new("x.wav"), channel) {
                Ok(got) if got == wanted => {}
                other => failures.push(format!("{bits} {format:?} {channel:?}: {other:?}")),
            }
        }
        let summary = wav::summary(bytes.as_slice(), Path::new("x.wav"), None).unwrap();
        assert_eq!((summary.samples, summary.sample_rate_hz), (100, Some(12_000.0)));
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let sentence = refusal(wav::read(wav_bytes(hound::SampleFormat::Int, 16, 2).as_slice(), Path::new("x.wav"), Some(2)));
    assert!(sentence.contains("no channel 2 here; the file has 2 channels"), "{sentence}");
}

fn npy_bytes(descr: &str, shape: &str, version: u8, numbers: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    if version == 1 {
        bytes.extend((header.len() as u16).to_le_bytes())
    } else {
        bytes.extend((header.len() as u32).to_le_bytes())
    }
    bytes.extend(header.as_bytes());
    bytes.extend(numbers);
    bytes
}

#[test]
fn npy_vectors_of_each_type_read_and_other_arrays_are_refused() {
    let wanted = [-1.0f32, 0.0, 300.0];
    let each = |f: fn(f32) -> Vec<u8>| wanted.iter().flat_map(|value| f(*value)).collect::<Vec<u8>>();
    let cases = [
        ("<f4", each(|v| v.to_le_bytes().to_vec())),
        ("<f8", each(|v| f64::from(v).to_le_bytes().to_vec())),
        ("<i2", each(|v| (v as i16).to_le_bytes().to_vec())),
        ("<i4", each(|v| (v as i32).to_le_bytes().to_vec())),
    ];
    let mut failures = Vec::new();
    for (descr, numbers) in &cases {
        for (shape, version) in [("(3,)", 1), ("(3, 1)", 2), ("(1, 3)", 3)] {
            let got = npy::read(npy_bytes(descr, shape, version, numbers).as_slice(), Path::new("x.npy"));
            if !matches!(&got, Ok(samples) if samples == &wanted) {
                failures.push(format!("{descr} {shape}: {got:?}"));
            }
        }
    }
    for (descr, shape, expected) in [
        (">f4", "(3,)", "numbers of type `>f4`"),
        ("|O", "(3,)", "numbers of type `|O`"),
        ("<f4", "(3, 2)", "the shape [3, 2]"),
        ("<f4", "()", "the shape []"),
        ("<f4", "(4,)", "the file ends"),
        ("<f4", "(99999999999999999999,)", "a dimension"),
        ("<f4", "(9999999999,)", "more than the limit"),
        ("<f4", "(-1,)", "a dimension"),
    ] {
        let got = refusal(npy::read(npy_bytes(descr, shape, 1, &cases[0].1).as_slice(), Path::new("x.npy")));
        if !got.contains(expected) {
            failures.push(format!("{descr} {shape}: `{got}` lacks `{expected}`"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn raw_streams_come_in_any_pieces_and_end_on_a_sample() {
    /// Gives one to three bytes at a time.
    struct Trickle<'a>(&'a [u8], usize);
    impl std::io::Read for Trickle<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 % 3 + 1;
            let bytes = self.1.min(self.0.len()).min(out.len());
            out[..bytes].copy_from_slice(&self.0[..bytes]);
            self.0 = &self.0[bytes..];
            Ok(bytes)
        }
    }
    let samples: Vec<f32> = (0..1000).map(|i| i as f32 * 0.5).collect();
    let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    assert_eq!(raw::read(Trickle(&bytes, 0), Path::new("-")).unwrap(), samples);
    let sentence = refusal(raw::read(Trickle(&bytes[..3999], 0), Path::new("-")));
    assert!(sentence.contains("byte 3996: 3 bytes at the end"), "{sentence}");
}

#[test]
fn files_of_no_known_kind_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.pdf");
    std::fs::write(&path, "x").unwrap();
    for (path, wanted) in
        [(path.as_path(), "unknown format"), (folder.path(), "no regular file"), (Path::new("no/such.wav"), "cannot open")]
    {
        let sentence = refusal(read_recording(path));
        assert!(sentence.contains(wanted) && sentence.contains(&path.display().to_string()), "{sentence}");
    }
}

/// One valid file of every format.
static VALID_FILES: LazyLock<Vec<(&'static str, Vec<u8>)>> = LazyLock::new(|| {
    let mut npy_file = Vec::new();
    npy::write(&mut npy_file, &[1.0, 2.0, 3.0]).unwrap();
    vec![
        ("mat", cwru_file(false, false)),
        ("mat", cwru_file(true, true)),
        ("npy", npy_file),
        ("wav", wav_bytes(hound::SampleFormat::Int, 24, 2)),
        ("wav", wav_bytes(hound::SampleFormat::Float, 32, 1)),
        ("csv", b"time,acc\n0.0,5\n0.1,6\n0.2,\"7\"\n".to_vec()),
        ("f32", [1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat()),
    ]
});

fn read_any(format: &str, bytes: &[u8]) {
    let path = Path::new("x");
    let outcome = match format {
        "mat" => MatFile::open(Cursor::new(bytes), path)
            .and_then(|mut file| (0..file.arrays().len()).try_for_each(|index| file.read(index).map(|_| ()))),
        "npy" => npy::read(bytes, path).map(|_| ()),
        "wav" => wav::summary(bytes, path, None).and_then(|_| wav::read(bytes, path, None).map(|_| ())),
        "csv" => csv::read(bytes, path, None).map(|_| ()),
        _ => raw::read(bytes, path).map(|_| ()),
    };
    if let Err(error) = outcome {
        assert!(!error.to_string().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn mutated_and_truncated_files_never_panic(
        which in 0usize..7,
        // Most damage hits the first 400 bytes, where headers and tags are.
        damage in prop::collection::vec((0usize..400, any::<u8>()), 0..8),
        anywhere in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        keep in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (format, mut bytes) = VALID_FILES[which].clone();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        for (at, value) in anywhere {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(keep) = keep {
            bytes.truncate(keep.index(bytes.len() + 1));
        }
        read_any(format, &bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), header in 0usize..4) {
        let start: &[u8] = match header {
            0 => &[],
            1 => b"\x93NUMPY\x01\x00",
            2 => b"RIFF\x00\x10\x00\x00WAVEfmt ",
            _ => &MatWriter::new(false).bytes,
        };
        let bytes = [start, &bytes].concat();
        for format in ["mat", "npy", "wav", "csv", "f32"] {
            read_any(format, &bytes);
        }
    }

    #[test]
    fn npy_files_come_back_as_written(samples in prop::collection::vec(any::<f32>().prop_filter("finite", |v| v.is_finite()), 0..500)) {
        let mut bytes = Vec::new();
        npy::write(&mut bytes, &samples).unwrap();
        prop_assert_eq!((bytes.len() - samples.len() * 4) % 64, 0);
        prop_assert_eq!(npy::read(bytes.as_slice(), Path::new("x.npy")).unwrap(), samples);
    }
}
