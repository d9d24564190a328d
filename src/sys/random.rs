//! Random bytes fit for keys.

use crate::error::{Error, Result};

/// Fills `bytes` from the kernel's generator.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<()> {
    let mut done = 0;
    // BOUND: each turn fills at least a byte or ends; only signals repeat a turn.
    while done < bytes.len() {
        let rest = &mut bytes[done..];
        // SAFETY: the pointer and length are those of a live mutable slice.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        let Ok(got) = usize::try_from(got) else {
            let error = std::io::Error::last_os_error();
            if error.kind() == std::io::ErrorKind::Interrupted {
                continue;
            }
            return Err(Error::os(&error, "getrandom"));
        };
        done += got;
    }
    Ok(())
}

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_draws_differ() {
        assert_ne!(super::bytes::<32>().expect("draw"), super::bytes::<32>().expect("draw"));
        assert!(super::bytes::<0>().expect("draw").is_empty());
    }
}
