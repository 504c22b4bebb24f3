//! The tables of `docs/results/papers.md`: trains, prunes, measures, and goes on where a killed run stopped.
//!
//! `ESPALIER_DATA=DIR cargo bench --bench papers -- [--only cwru-load|uestc-speed] [--threads N] [--tables]`
//!
//! | file | concern |
//! |--|--|
//! | `config` | which cells there are, and their settings |
//! | `cells` | one cell: its network and its measurements |
//! | `tables` | numbers over seeds and test sets, as CSV and picture |
//! | `report` | the page |

mod cells;
mod config;
mod report;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use espalier_agent::AgentError;
use espalier_agent::train::Stop;

use cells::{CellResult, Laboratory, finished};
use config::{Cell, Family};
use tables::Tables;

/// Computes the cells of the experiment tables that are not there yet, and writes the tables.
#[derive(Debug, Parser)]
#[command(name = "papers")]
struct Args {
    /// One protocol.
    #[arg(long, value_enum)]
    only: Option<Family>,
    /// Threads for computing.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Where the tables are written.
    #[arg(long, default_value = "docs/results")]
    out: PathBuf,
    /// Where results and networks of finished cells are kept.
    #[arg(long, default_value = "target/papers")]
    cells: PathBuf,
    /// Only write the tables of the cells that are there.
    #[arg(long)]
    tables: bool,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if !args.bench {
        println!("papers takes an hour; it runs with `cargo bench --bench papers`");
        return Ok(());
    }
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    std::fs::create_dir_all(&args.cells).with_context(|| format!("cannot make the folder {}", args.cells.display()))?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let failures = if args.tables { Vec::new() } else { compute(&args)? };
    // The tables are of every protocol, whichever was computed now.
    let mut results: Vec<(Cell, Option<CellResult>)> = Vec::new();
    for cell in Family::ALL.into_iter().flat_map(Family::cells) {
        results.push((cell, finished(&args.cells, &cell)?));
    }
    let missing = results.iter().filter(|(_, result)| result.is_none()).count();
    report::write(&Tables::new(results), args.threads, &args.out)?;
    println!("wrote papers.md, papers.csv and papers.svg to {}; {missing} cells are missing", args.out.display());
    ensure!(failures.is_empty(), "{} cells failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// Computes what is missing until it is done or stopped; returns what failed.
fn compute(args: &Args) -> Result<Vec<String>> {
    let recordings = std::env::var_os("ESPALIER_DATA").context("no recordings: set ESPALIER_DATA to their folder (docs/data.md)")?;
    let stop = stop_on_signals()?;
    let mut laboratory = Laboratory::new(args.threads.into(), recordings.into(), args.cells.clone(), stop.clone())?;
    let families = args.only.map_or(Family::ALL.to_vec(), |family| vec![family]);
    let cells: Vec<Cell> = families.into_iter().flat_map(Family::cells).collect();
    let mut failures = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        if finished(&args.cells, cell)?.is_some() {
            continue;
        }
        eprintln!("{}/{} {}", index + 1, cells.len(), cell.name());
        let started = Instant::now();
        match laboratory.run(cell) {
            Ok(result) => {
                let clean = result.tests.iter().find(|test| test.snr_db.is_none()).map_or(f64::NAN, |test| test.accuracy);
                let ratio = result.compression_ratio;
                eprintln!(
                    "  {ratio:.2}×, first test set clean {:.1} %, cell done in {:.0} s",
                    100.0 * clean,
                    started.elapsed().as_secs_f64()
                );
            }
            Err(error) if matches!(error.downcast_ref(), Some(AgentError::Cancelled)) => break,
            Err(error) => {
                eprintln!("  failed: {error:#}");
                failures.push(format!("{}: {error:#}", cell.name()));
            }
        }
    }
    Ok(failures)
}

/// A stop that SIGINT and SIGTERM ask for; a second one ends the program at once.
fn stop_on_signals() -> Result<Stop> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .with_context(|| format!("signal {signal} cannot be handled"))?;
    }
    Ok(Stop::by_flag(flag))
}
