//! `palisade`: the operator's command.

fn main() -> std::process::ExitCode {
    palisade_integration_server::cli::main()
}
