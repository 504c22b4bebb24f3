//! What the program does when a page of a mapped file cannot be read: it goes on, and says so.

use std::io;
use std::ptr;

use espalier_models::artifact::{lost_pages, replace_page};

use crate::error::{AgentError, Result};

/// From now on a page of an artifact that cannot be read is replaced by zeros, and whoever computes with it gets an error value. SIGBUS for
/// another reason, sent by another program for one, ends this one as before.
///
/// # Errors
/// [`AgentError::Usage`] where the system refuses.
pub fn replace_lost_pages() -> Result<()> {
    // SAFETY: zeros are a valid `sigaction`; its mask and flags are set before it is used. The handler has the signature that SA_SIGINFO asks
    // for and calls only what a handler may. Rust's own handler of this signal looks for overflown stacks, which are SIGSEGV on Linux.
    let code = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut())
    };
    if code == 0 {
        return Ok(());
    }
    Err(AgentError::Usage(format!("pages that cannot be read cannot be replaced: {}", io::Error::last_os_error())))
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system gives a handler with SA_SIGINFO a valid `siginfo_t`, which has an address where the system itself sent SIGBUS.
    let (from_system, address) = unsafe { ((*info).si_code > 0, (*info).si_addr() as usize) };
    if from_system && replace_page(address) {
        return;
    }
    // SAFETY: a handler may change what a signal does, and send one. This one is held back until the handler returns, and then ends the
    // program.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Whether all that the program has read of artifacts so far was there.
///
/// # Errors
/// [`AgentError::LostPages`].
pub fn check_pages() -> Result<()> {
    if lost_pages() == 0 { Ok(()) } else { Err(AgentError::LostPages) }
}
