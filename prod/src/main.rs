//! The `twinshard` program.

fn main() -> std::process::ExitCode {
    twinshard::cli::main()
}
