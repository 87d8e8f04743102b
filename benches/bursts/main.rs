//! What dropping data structures of many small blocks costs, `deferfree` against plain mimalloc and
//! glibc, and against a drop that frees nothing at all (`floor`).
//!
//! Arguments and variables are those of `large_free`: `cargo bench --bench bursts -- shapes/BTreeMap`
//! runs some cases of one section, `-- --quick` gives rough figures.

#[cfg(target_os = "linux")]
mod shapes;
#[cfg(target_os = "linux")]
mod sizes;
#[cfg(target_os = "linux")]
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod sweep;
#[cfg(target_os = "linux")]
mod threads;

#[cfg(target_os = "linux")]
#[global_allocator]
static GLOBAL: support::allocator::Switch = support::allocator::Switch;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use support::allocator::Contender;

    support::section::Bench {
        name: "bursts",
        sections: &[&shapes::SECTION, &threads::SECTION, &sweep::SECTION, &sizes::SECTION],
        contenders: &[
            Contender::System,
            Contender::Mimalloc,
            Contender::Floor,
            Contender::Deferfree,
        ],
        first: || (),
    }
    .main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("bursts reads /proc: Linux only");
}
