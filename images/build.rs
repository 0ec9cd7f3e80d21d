//! Turns `proto/*.proto` into Rust, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let set = protox::compile(
        [
            "snapshot.proto",
            "manifest.proto",
            "segment.proto",
            "working_set.proto",
        ],
        ["proto"],
    )?;
    prost_build::Config::new().compile_fds(set)?;
    Ok(())
}
