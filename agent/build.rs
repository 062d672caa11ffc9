//! Strips what ships. Cargo leaves out `strip` for a package whose profile is overridden, and this
//! one's is (`profile.dist.package` in the root manifest).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--strip-all");
    }
}
