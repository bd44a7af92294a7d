//! The command line of VBM: see [`vbm_sdk::cli`].

fn main() -> std::process::ExitCode {
    vbm_sdk::cli::main()
}
