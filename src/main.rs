//! The program `unisono`: starts ranks, measures, checks, and says what it found and chose.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
