//! Links libclamav, or says what to install.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=/usr/include/clamav.h");
    if !found_by_pkg_config() && !found_in_usual_places() {
        println!(
            "cargo:warning=libclamav was not found: apt-get install libclamav-dev, \
             then build again"
        );
        std::process::exit(1);
    }
    println!("cargo:rustc-link-lib=clamav");
}

/// Asks pkg-config, and passes on where it says the library is.
fn found_by_pkg_config() -> bool {
    let asked = Command::new("pkg-config")
        .args(["--libs-only-L", "--print-errors", "libclamav >= 1.4"])
        .output();
    match asked {
        Ok(output) if output.status.success() => {
            for flag in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                if let Some(directory) = flag.strip_prefix("-L") {
                    println!("cargo:rustc-link-search=native={directory}");
                }
            }
            true
        }
        _ => false,
    }
}

fn found_in_usual_places() -> bool {
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let debian = format!("/usr/lib/{arch}-linux-gnu");
    [debian.as_str(), "/usr/lib64", "/usr/lib", "/usr/local/lib"]
        .iter()
        .any(|directory| Path::new(directory).join("libclamav.so").exists())
}
