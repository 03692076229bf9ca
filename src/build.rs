//! The build script: which commit is built, for `lrpt --version`, and the kernels for NVIDIA GPUs.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=LRPT_COMMIT");
    let told = std::env::var("LRPT_COMMIT").ok();
    let told = told.and_then(|told| told.split_whitespace().next().map(str::to_owned));
    let commit = told.unwrap_or_else(|| {
        let checkout = Checkout::of(Path::new("."));
        for file in checkout.iter().flat_map(|checkout| &checkout.moves_with) {
            println!("cargo:rerun-if-changed={}", file.display());
        }
        checkout.map_or("unknown".to_owned(), |checkout| checkout.commit)
    });
    println!("cargo:rustc-env=LRPT_BUILT_FROM={commit}");
    #[cfg(all(feature = "cuda", not(test)))]
    compile_kernels();
}

/// The kernels for NVIDIA GPUs as PTX, with constants of it in `kernels.rs`.
#[cfg(all(feature = "cuda", not(test)))]
fn compile_kernels() {
    let folder = "src/kernels/gpu";
    println!("cargo:rerun-if-changed={folder}");
    for variable in ["CUDA_COMPUTE_CAP", "NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("Cargo sets OUT_DIR"));
    // What a stand-in for nvcc wrote, with which types are checked, is not what a build links.
    for file in empty_kernels(&out) {
        std::fs::remove_file(file).expect("a file of this build");
    }
    let built = cudaforge::KernelBuilder::new()
        .source_dir(folder)
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()
        .and_then(|kernels| kernels.write(out.join("kernels.rs")));
    if let Err(error) = built {
        panic!(
            "the kernels in {folder} cannot be compiled: {error}; docs/gpu.md says what is needed"
        );
    }
    if let Some(file) = empty_kernels(&out).first() {
        println!(
            "cargo:warning={} is empty: this build checks types and runs nowhere",
            file.display()
        );
        // A file that is not there: the next build compiles them anew.
        println!("cargo:rerun-if-changed={}", out.join("kernels that are not empty").display());
    }
}

/// Compiled kernels with nothing in them.
#[cfg(all(feature = "cuda", not(test)))]
fn empty_kernels(out: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(out).into_iter().flatten().flatten();
    let is_empty = |file: &std::fs::DirEntry| {
        file.path().extension().is_some_and(|extension| extension == "ptx")
            && file.metadata().is_ok_and(|metadata| metadata.len() == 0)
    };
    files.filter(is_empty).map(|file| file.path()).collect()
}

/// What is checked out in a folder.
#[derive(Debug)]
pub struct Checkout {
    /// Short hash of the commit.
    pub commit: String,
    /// Files of git, one of which changes where another commit is checked out.
    pub moves_with: Vec<PathBuf>,
}

impl Checkout {
    /// What git says of a folder; none without git, or where the folder is not the top of a
    /// checkout, as that of a copy within another repository is not.
    pub fn of(folder: &Path) -> Option<Self> {
        let git = |arguments: &[&str]| {
            let output = Command::new("git").args(arguments).current_dir(folder).output().ok()?;
            let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
            Some(text.trim_end().to_owned()).filter(|text| !text.is_empty())
        };
        let top = git(&["rev-parse", "--show-toplevel"])?;
        if Path::new(&top).canonicalize().ok()? != folder.canonicalize().ok()? {
            return None;
        }
        let commit = git(&["rev-parse", "--short", "HEAD"])?;
        // A branch that is packed with others has no file of its own, but a log of HEAD.
        let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
        let names = ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref());
        let files = names.filter_map(|name| git(&["rev-parse", "--git-path", name]));
        // Cargo takes a file that is not there for one that has changed.
        let moves_with = files.map(PathBuf::from).filter(|file| folder.join(file).exists());
        Some(Self { moves_with: moves_with.collect(), commit })
    }
}
