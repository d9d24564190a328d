//! The CUDA driver, NCCL and RDMA, which are loaded to be asked.

use serde_json::{Value, json};
use unisono::config::Config;
use unisono::kernel::cuda::ARCHITECTURES;

use super::Part;

/// The CUDA driver and its devices, or the reason why there is none.
pub(super) fn cuda() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::cuda(&config));
    let (text, value) = match found {
        Ok(lines) => {
            let text = lines.iter().map(|line| format!("  {line}\n")).collect();
            (text, json!({"driver": lines[0], "devices": lines[1..]}))
        }
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    Part { name: "cuda", title: "CUDA".to_owned(), text, value }
}

/// Which NCCL is here, and what it has.
pub(super) fn nccl() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::nccl(&config));
    let (text, value) = match found {
        Ok(line) => (format!("  {line}\n"), json!({"found": line})),
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    let title = "NCCL".to_owned();
    Part { name: "nccl", title, text, value }
}

/// The RDMA cards, and which of them communicators would use, or why none.
pub(super) fn rdma() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::rdma(&config));
    let (text, value) = match found {
        Ok((cards, choice)) => {
            let lines = cards.iter().chain([&choice]).map(|line| format!("  {line}\n"));
            (lines.collect(), json!({"cards": cards, "choice": choice}))
        }
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    let title = "RDMA (links rdma and rsocket)".to_owned();
    Part { name: "rdma", title, text, value }
}

/// The CUDA kernels that the build has made.
pub(super) fn kernels() -> Part {
    let text = if ARCHITECTURES.is_empty() {
        "  none: the build found no nvcc that works (its warning says what to install)\n".to_owned()
    } else {
        format!("  for {}\n", ARCHITECTURES.join(", "))
    };
    Part {
        name: "cuda_kernels",
        title: "CUDA kernels in this build (compute_: for later devices)".to_owned(),
        text,
        value: Value::from(ARCHITECTURES),
    }
}
