//! Generates the ttrpc stubs of `proto/agent.proto` into `OUT_DIR`.

use std::{env, fs, path::PathBuf};

use ttrpc_codegen::{Codegen, Customize};

fn main() {
    println!("cargo::rerun-if-changed=proto/agent.proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (directory, async_server) in [("client", false), ("server", true)] {
        let target = out.join(directory);
        fs::create_dir_all(&target).expect("OUT_DIR is writable");
        Codegen::new()
            .out_dir(&target)
            .input("proto/agent.proto")
            .include("proto")
            .rust_protobuf()
            .customize(Customize {
                // Not `async_server`: that leaves a blocking client beside the async server,
                // which does not compile without ttrpc's `sync` feature.
                async_all: async_server,
                gen_mod: false,
                ..Default::default()
            })
            .run()
            .expect("proto/agent.proto is valid");
        strip_inner_attributes(&target.join("agent.rs"));
        strip_inner_attributes(&target.join("agent_ttrpc.rs"));
    }
}

/// Generated files start with inner attributes and docs, which `include!` does not accept.
fn strip_inner_attributes(file: &std::path::Path) {
    let text = fs::read_to_string(file).expect("the generator wrote this file");
    let kept: String = text
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"))
        .flat_map(|line| [line, "\n"])
        .collect();
    fs::write(file, kept).expect("OUT_DIR is writable");
}
