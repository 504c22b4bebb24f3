//! The `espalier` binary.

use std::process::ExitCode;

use clap::Parser;
use espalier_agent::AgentError;
use espalier_agent::cli::{self, Cli};

/// Large blocks go back to the system when they are freed: what this process holds is what it is judged by.
#[global_allocator]
static ALLOCATOR: espalier_runtime::PageAllocator = espalier_runtime::PageAllocator;

fn main() -> ExitCode {
    espalier_runtime::tune_system_allocator();
    let cli = Cli::parse();
    let level = ["warn", "info", "debug", "trace"][usize::from(cli.verbose).min(3)];
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).format_target(false).init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("espalier: {error:#}");
            let usage = error.downcast_ref::<AgentError>().is_some_and(AgentError::is_usage);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    Ok(cli::run(cli)?)
}
