//! Compiles the C++ part against the libtorch that `LIBTORCH` names, with the flags that torch-sys uses.

use std::{env, path::PathBuf};

const SOURCES: [&str; 9] = [
    "shim.cpp",
    "analysis.cpp",
    "conditions.cpp",
    "define.cpp",
    "duration.cpp",
    "effects.cpp",
    "pickle.cpp",
    "state.cpp",
    "tensor.cpp",
];
const HEADERS: [&str; 8] =
    ["shim.h", "analysis.h", "conditions.h", "duration.h", "effects.h", "guard.h", "pickle.h", "state.h"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    for file in SOURCES.iter().chain(&HEADERS) {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    assert!(
        libtorch.join("include/torch/csrc/api/include/torch/torch.h").exists(),
        "no libtorch at '{}': run `make libtorch`",
        libtorch.display()
    );
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .flag("-std=c++17")
        .flag("-D_GLIBCXX_USE_CXX11_ABI=1")
        .flag("-DGLOG_USE_GLOG_EXPORT")
        .opt_level(2)
        .files(SOURCES.map(|file| format!("src/{file}")))
        .compile("torch_shim");
    let library = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", library.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", library.display());
    println!("cargo:library={}", library.display());
}
