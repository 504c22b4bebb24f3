//! A node with a graph of another program: what fails is opened again.

use std::path::Path;

use super::super::ForeignNode;
use super::*;

/// Windows of a run.
const WINDOWS: usize = 60;

/// Gives a few windows.
struct Few;

impl Source for Few {
    fn run(&mut self, feed: &mut Feed) -> Result<()> {
        feed.begin(0, None)?;
        let samples: Vec<f32> = (0..WINDOW).map(|at| at as f32).collect();
        for _ in 0..WINDOWS {
            if feed.samples(&samples).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[test]
fn an_engine_that_fails_is_opened_again_and_no_window_is_lost() {
    let budget = Arc::new(Budget::unlimited());
    // What the engine is of does not matter: it was asked for by name, so that none takes its place.
    let engines = Engines::new(Asked { engine: EngineChoice::Cpu, ..Asked::default() });
    let device = OpenDevice::Cpu(CpuDevice::new(1, budget.clone()).unwrap());
    let faults = Arc::new(Mutex::new(vec![Fault::Broken(20), Fault::NotANumber(10), Fault::None]));
    let opened = faults.clone();
    let mut open: serving::Opener = Box::new(move |_, budget, _| {
        let fault = opened.lock().unwrap().remove(0);
        let memory = Reservation::new(budget.clone(), Purpose::Weights, 1000)?;
        let classes = CLASSES.map(String::from).to_vec();
        Ok((Box::new(FakeEngine { model_id: 7, fault, classes, calls: 0, answer: [0.0; 2], _memory: memory }), Weak::new()))
    });
    let (engine, _) = open(&device, &budget, Path::new("other.onnx")).unwrap();
    let heard = MemorySink::default();
    let options = Options { retry: Duration::from_secs(20), ..Options::default() };
    let handle = Diagnosis::start(options, engine, Box::new(Few), vec![Box::new(heard.clone())]).unwrap();
    let mut node = ForeignNode::with((engines, device), budget.clone(), handle, PathBuf::from("other.onnx"), open);
    node.run(&Stop::new());
    let snapshot = node.handle().wait().unwrap();
    let numbers: Vec<u64> = heard.take().verdicts.iter().map(|verdict| verdict.sequence).collect();
    assert_eq!(numbers, (0..WINDOWS as u64).collect::<Vec<_>>(), "{:?}", node.log);
    assert!(snapshot.is_complete() && snapshot.failed == 0 && snapshot.judged == WINDOWS as u64, "{snapshot:?}");
    assert!(faults.lock().unwrap().is_empty(), "three engines served");
    assert_eq!(node.unserved(), None);
    assert!(node.log.iter().any(|(_, text)| text.contains("it is broken")), "{:?}", node.log);
}
