//! The engine: numbers, memory.

use std::sync::Arc;

use espalier_agent::data::Data;
use espalier_agent::signals::splits::Protocol;
use espalier_agent::signals::{Corpus, ReadOptions, WindowSet, normalise_as};
use espalier_models::foreign::{ForeignModel, Layout};
use espalier_runtime::{Budget, OrtForeign, OrtLibrary, OrtOptions, OrtProviders, RuntimeError, foreign_plan};

use crate::{TOLERANCE, data, library::library, off, recordings, tensor};

const OPTIONS: OrtOptions = OrtOptions { threads: 1, prepack: false, providers: OrtProviders::CPU };

fn open(library: &OrtLibrary, budget: &Arc<Budget>, name: &str, most: usize) -> OrtForeign {
    let model = Arc::new(ForeignModel::open(&data(name), None).expect("a graph with a sidecar"));
    OrtForeign::open(library, budget, model, most, OPTIONS).expect("a session")
}

#[test]
fn a_cnn_of_pytorch_computes_what_pytorch_does() {
    let Some(library) = library() else { return };
    let (mut windows, shape) = tensor("cnn.safetensors", "windows");
    let (expected, _) = tensor("cnn.safetensors", "logits");
    let budget = Arc::new(Budget::unlimited());
    let mut cnn = open(library, &budget, "cnn.onnx", shape[0]);
    let signal = cnn.model().sidecar.signal().expect("signals").clone();
    windows.chunks_exact_mut(signal.window).for_each(|window| normalise_as(window, signal.normalisation).expect("a signal"));
    // All that runs will take is booked.
    budget.set_limit(budget.used());
    let difference = off(cnn.outputs(&windows).expect("logits"), &expected);
    println!("made windows: logits off by {difference:.1e}");
    assert!(difference <= TOLERANCE, "logits off by {difference:.1e}");
    for (window, expected) in windows.chunks_exact(signal.window).zip(expected.chunks_exact(4)) {
        let difference = off(cnn.outputs(window).expect("logits"), expected);
        assert!(difference <= TOLERANCE, "one window: logits off by {difference:.1e}");
        let probabilities = cnn.classify(window).expect("probabilities");
        assert!((probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{probabilities:?}");
    }
    assert!(cnn.outputs(&windows[..100]).is_err() && cnn.outputs(&[]).is_err(), "no whole window");
    drop(cnn);
    assert_eq!(budget.used(), 0, "all bytes are given back");
}

/// Every holdout and test window of `uestc-speed:1000`, next to what PyTorch computed with the windows that it cut itself.
#[test]
fn recordings_are_judged_as_pytorch_judges_them() {
    let (Some(library), Some(folder)) = (library(), recordings()) else { return };
    let protocol: Protocol = "uestc-speed:1000".parse().expect("a protocol");
    let corpus = Corpus::open_with(&folder, Some(&protocol), &ReadOptions::default()).expect("recordings");
    let data = Data::new(corpus, &protocol).expect("a split");
    let mut cnn = open(library, &Arc::new(Budget::unlimited()), "cnn.onnx", 32);
    assert_eq!(cnn.model().classes(), data.split.classes);
    let tests = data.split.test.iter().map(|test| test.name.as_str()).zip(&data.sets.tests);
    let mut wrong = Vec::new();
    for (name, set) in std::iter::once(("holdout", &data.sets.holdout)).chain(tests) {
        let (expected, shape) = tensor("cnn-uestc.safetensors", &format!("{name}.logits"));
        let (labels, _) = tensor("cnn-uestc.safetensors", &format!("{name}.labels"));
        let (found, classes) = logits(&mut cnn, set);
        let difference = off(&found, &expected);
        println!("{name}: {} windows, logits off by {difference:.1e}", classes.len());
        if difference > TOLERANCE || classes.len() != shape[0] || classes.iter().zip(&labels).any(|(a, b)| *a as f32 != *b) {
            wrong.push(format!("{name}: {} windows, PyTorch {}; logits off by {difference:.1e}", classes.len(), shape[0]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Logits of every window of a set, and its class.
fn logits(cnn: &mut OrtForeign, set: &WindowSet) -> (Vec<f32>, Vec<usize>) {
    let (mut all, mut classes) = (Vec::new(), Vec::new());
    for index in 0..set.len() {
        let mut window = vec![0.0; set.length()];
        classes.push(set.window(index, &mut window).expect("a signal"));
        all.extend_from_slice(cnn.outputs(&window).expect("logits"));
    }
    (all, classes)
}

#[test]
fn a_fixed_batch_and_probabilities_are_taken_as_they_are() {
    let Some(library) = library() else { return };
    let mut tiny = open(library, &Arc::new(Budget::unlimited()), "tiny.onnx", 32);
    assert_eq!((tiny.model().binding.batches, tiny.model().binding.layout), (false, Layout::Flat));
    let windows: Vec<f32> = (0..16).map(|index| (index as f32 * 0.7).sin()).collect();
    let weight = |sample: usize, class: usize| ((sample * 3 + class) % 7) as f32 / 4.0 - 0.75;
    for (window, found) in windows.chunks(8).zip(tiny.classify(&windows).expect("probabilities").chunks(3)) {
        let logits: Vec<f32> = (0..3).map(|class| (0..8).map(|sample| window[sample] * weight(sample, class)).sum()).collect();
        let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let expected: Vec<f32> = logits.iter().map(|logit| logit.exp() / total).collect();
        assert!(off(found, &expected) < 1e-5, "{found:?} {expected:?}");
    }
}

#[test]
fn what_is_known_of_a_graph_is_refused_before_it_is_loaded_and_the_limit_holds() {
    let Some(library) = library() else { return };
    let model = Arc::new(ForeignModel::open(&data("cnn.onnx"), None).expect("a graph with a sidecar"));
    let planned = foreign_plan(&model.graph).total();
    let budget = Arc::new(Budget::unlimited());
    let needed = {
        let _opened = OrtForeign::open(library, &budget, model.clone(), 32, OPTIONS).expect("a session");
        budget.high_water()
    };
    let mut wrong = Vec::new();
    for share in [0, 20, 50, 80, 95, 110, 150] {
        let limit = needed / 100 * share;
        let budget = Arc::new(Budget::new(limit, 0));
        match OrtForeign::open(library, &budget, model.clone(), 32, OPTIONS) {
            Ok(_) if limit < needed / 2 => wrong.push(format!("{share} %: opened")),
            Err(RuntimeError::Kernel(_)) if share < 150 => {}
            Err(error) => wrong.push(format!("{share} %: {error}")),
            Ok(_) => {}
        }
        if budget.high_water() > limit || budget.used() > 0 {
            wrong.push(format!("{share} %: {} bytes of {limit}, {} in the end", budget.high_water(), budget.used()));
        }
    }
    println!("planned {planned}, needed {needed}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
