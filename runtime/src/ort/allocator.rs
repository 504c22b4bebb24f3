//! ONNX Runtime's allocations, asked of a ledger.
//!
//! An allocator is registered with the environment, and sessions are told to use it. It takes memory in the name of the [`Account`] that
//! the calling thread has [entered](Account::enter), and of the last one that any thread entered where ONNX Runtime's own threads ask.
//!
//! While a graph is loaded, a refusal is a null pointer to the thread that loads, which ONNX Runtime reports as an error. While a graph runs
//! it would read through that pointer: then memory is given all the same, and the account says so afterwards. A session therefore books what
//! a run can take before the first one. A thread that has entered no account may work for any session, also one that runs, and is never
//! refused.

use std::alloc::Layout;
use std::cell::RefCell;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use espalier_kernels::{KernelError, Ledger, Purpose};
use ort::AsPointer;
use ort::environment::Environment;
use ort::sys;

use crate::error::{Result, RuntimeError};

/// What ONNX Runtime holds for one session and purpose.
pub(super) struct Account {
    ledger: Arc<dyn Ledger>,
    purpose: Purpose,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that are out.
    used: u64,
    /// The most that were out.
    peak: u64,
    /// Bytes taken from the ledger: at least those that are out, but for what is `over`.
    booked: u64,
    /// Whether a refusal is a null pointer to a thread that has entered.
    strict: bool,
    /// The first refusal.
    refusal: Option<KernelError>,
}

thread_local! {
    static ENTERED: RefCell<Option<Arc<Account>>> = const { RefCell::new(None) };
}

/// For threads that have entered none.
static LAST: Mutex<Weak<Account>> = Mutex::new(Weak::new());

impl Account {
    pub(super) fn new(ledger: Arc<dyn Ledger>, purpose: Purpose) -> Arc<Self> {
        Arc::new(Self { ledger, purpose, state: Mutex::default() })
    }

    /// Runs `work`, whose allocations this account takes; returns the first refusal too, whatever `work` made of it. `strict`: a refusal is
    /// a null pointer to the calling thread; others get their memory, and the refusal is returned.
    pub(super) fn enter<T>(self: &Arc<Self>, strict: bool, work: impl FnOnce() -> T) -> (T, Option<KernelError>) {
        self.state().strict = strict;
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(self);
        let entered = Entered(ENTERED.replace(Some(self.clone())));
        let result = work();
        drop(entered);
        (result, self.state().refusal.take())
    }

    /// Takes `bytes` from the ledger for what is to come.
    ///
    /// # Errors
    /// The ledger refuses.
    pub(super) fn book(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        let more = bytes.saturating_sub(state.booked);
        self.ledger.reserve(self.purpose, more)?;
        state.booked += more;
        Ok(())
    }

    /// Bytes that are out.
    pub(super) fn used(&self) -> u64 {
        self.state().used
    }

    /// The most bytes that were ever out.
    pub(super) fn peak(&self) -> u64 {
        self.state().peak
    }

    /// Where it takes memory from.
    pub(super) fn ledger(&self) -> Arc<dyn Ledger> {
        self.ledger.clone()
    }

    /// Gives back what was booked beyond the most that was ever out.
    pub(super) fn keep_peak(&self) {
        let peak = self.state().peak;
        self.keep(peak);
    }

    /// Gives back what was booked beyond what is out.
    pub(super) fn keep_used(&self) {
        self.keep(self.used());
    }

    fn keep(&self, bytes: u64) {
        let mut state = self.state();
        let spare = state.booked.saturating_sub(bytes);
        self.ledger.release(self.purpose, spare);
        state.booked -= spare;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `bytes` may go out, to a thread that has `entered` this account or to another.
    fn take(&self, bytes: u64, entered: bool) -> bool {
        let mut state = self.state();
        let used = state.used.saturating_add(bytes);
        let more = used.saturating_sub(state.booked);
        if more > 0 {
            match self.ledger.reserve(self.purpose, more) {
                Ok(()) => state.booked += more,
                Err(refusal) => {
                    state.refusal.get_or_insert(refusal);
                    if state.strict && entered {
                        return false;
                    }
                }
            }
        }
        state.used = used;
        state.peak = state.peak.max(used);
        true
    }

    fn give_back(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }
}

/// The account that the calling thread had entered before; entered again when this is dropped, in a panic too.
struct Entered(Option<Arc<Account>>);

impl Drop for Entered {
    fn drop(&mut self) {
        // What is replaced is dropped after the cell is free again.
        drop(ENTERED.replace(self.0.take()));
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let booked = self.state().booked;
        self.ledger.release(self.purpose, booked);
    }
}

/// The C structure that ONNX Runtime calls, and what its functions need.
#[repr(C)]
struct Registered {
    functions: sys::OrtAllocator,
    info: *const sys::OrtMemoryInfo,
}

/// Stands before every block.
struct Head {
    /// An `Arc` that was turned into a pointer; null where no account was entered.
    account: *const Account,
    /// Length of the block, head included.
    bytes: usize,
}

/// ONNX Runtime wants blocks at multiples of 64 bytes; the head takes as much, so that they are.
const ALIGNMENT: usize = 64;
const _: () = assert!(size_of::<Head>() <= ALIGNMENT);

/// Registers the allocator with the environment, for good.
pub(super) fn register(environment: &Environment) -> Result<()> {
    let api = ort::api();
    let mut info = ptr::null_mut();
    // SAFETY: the library is loaded; `info` is written on success.
    let status =
        unsafe { (api.CreateCpuMemoryInfo)(sys::OrtAllocatorType::OrtDeviceAllocator, sys::OrtMemType::OrtMemTypeDefault, &mut info) };
    // SAFETY: the status was just returned by the library.
    unsafe { ort::Error::result_from_status(status) }.map_err(failed)?;
    let functions = sys::OrtAllocator {
        version: sys::ORT_API_VERSION,
        Alloc: Some(allocate),
        Free: Some(release),
        Info: Some(memory_info),
        Reserve: Some(reserve),
    };
    let registered = Box::leak(Box::new(Registered { functions, info }));
    // SAFETY: the structure lives as long as the process; the environment's pointer is valid while it is borrowed.
    let status = unsafe { (api.RegisterAllocator)(environment.ptr().cast_mut(), &mut registered.functions) };
    // SAFETY: as above.
    unsafe { ort::Error::result_from_status(status) }.map_err(failed)
}

fn failed(error: ort::Error) -> RuntimeError {
    RuntimeError::Ort(format!("ONNX Runtime takes no allocator of ours: {}", error.message()))
}

/// The account that the calling thread's allocations belong to, and whether the thread has entered it.
fn account() -> Option<(Arc<Account>, bool)> {
    let entered = ENTERED.try_with(|entered| entered.borrow().clone()).ok().flatten();
    let last = || LAST.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    entered.map(|account| (account, true)).or_else(|| last().map(|account| (account, false)))
}

/// A block of `bytes`, or null.
fn block(bytes: usize) -> *mut c_void {
    let Some(whole) = bytes.checked_add(ALIGNMENT) else { return ptr::null_mut() };
    let Ok(layout) = Layout::from_size_align(whole, ALIGNMENT) else { return ptr::null_mut() };
    let account = account();
    if account.as_ref().is_some_and(|(account, entered)| !account.take(whole as u64, *entered)) {
        return ptr::null_mut();
    }
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc(layout) };
    if start.is_null() {
        if let Some((account, _)) = account {
            account.give_back(whole as u64);
        }
        return ptr::null_mut();
    }
    let head = Head { account: account.map_or(ptr::null(), |(account, _)| Arc::into_raw(account)), bytes: whole };
    // SAFETY: the block has room for the head, at an alignment that fits it, and for what follows.
    unsafe {
        start.cast::<Head>().write(head);
        start.add(ALIGNMENT).cast()
    }
}

unsafe extern "system" fn allocate(_: *mut sys::OrtAllocator, bytes: usize) -> *mut c_void {
    block(bytes)
}

unsafe extern "system" fn reserve(_: *const sys::OrtAllocator, bytes: usize) -> *mut c_void {
    block(bytes)
}

unsafe extern "system" fn release(_: *mut sys::OrtAllocator, pointer: *mut c_void) {
    if pointer.is_null() {
        return;
    }
    // SAFETY: ONNX Runtime gives back what `block` returned, once; its head stands before it.
    unsafe {
        let start = pointer.cast::<u8>().sub(ALIGNMENT);
        let Head { account, bytes } = start.cast::<Head>().read();
        std::alloc::dealloc(start, Layout::from_size_align_unchecked(bytes, ALIGNMENT));
        if !account.is_null() {
            Arc::from_raw(account).give_back(bytes as u64);
        }
    }
}

unsafe extern "system" fn memory_info(allocator: *const sys::OrtAllocator) -> *const sys::OrtMemoryInfo {
    // SAFETY: ONNX Runtime passes the structure that was registered, whose first field the functions are.
    unsafe { (*allocator.cast::<Registered>()).info }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::budget::Budget;

    /// `LAST` is one for the process: one test enters at a time.
    pub static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    #[test]
    fn a_thread_that_entered_nothing_is_never_refused() {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = Arc::new(Budget::new(1000, 0));
        let account = Account::new(budget.clone(), Purpose::Weights);
        let work = || std::thread::spawn(|| block(5000) as usize).join().unwrap();
        let (start, refusal) = account.enter(true, work);
        assert!(start != 0, "another session's run may have asked");
        assert!(matches!(refusal, Some(KernelError::OutOfBudget { .. })), "the load fails all the same: {refusal:?}");
        assert_eq!((account.used(), budget.used()), (5000 + 64, 0));
        // SAFETY: `block` made it, and it is given back once.
        unsafe { release(ptr::null_mut(), start as *mut c_void) };
        assert_eq!(account.used(), 0);
    }

    #[test]
    fn a_panic_leaves_the_account() {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let account = Account::new(Arc::new(Budget::new(1000, 0)), Purpose::Weights);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| account.enter(true, || panic!("on purpose"))));
        assert!(panicked.is_err() && ENTERED.with_borrow(Option::is_none));
    }

    #[test]
    fn blocks_are_booked_and_given_back() {
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = Arc::new(Budget::new(10_000, 0));
        let account = Account::new(budget.clone(), Purpose::Activations);
        let (blocks, refusal) = account.enter(true, || [block(1000), block(2000), block(9000)]);
        assert!(blocks[2].is_null() && matches!(refusal, Some(KernelError::OutOfBudget { .. })), "{refusal:?}");
        assert_eq!((blocks[0] as usize % ALIGNMENT, budget.used()), (0, 3000 + 128));
        // SAFETY: `block` made both, and each is given back once.
        blocks[..2].iter().for_each(|&block| unsafe { release(ptr::null_mut(), block) });
        assert_eq!(budget.used(), 3128, "what a session held once it may hold again");
        account.book(5000).unwrap();
        assert_eq!(budget.used(), 5000);
        account.keep_peak();
        assert_eq!(budget.used(), 3128);
        let (over, refusal) = account.enter(false, || block(20_000));
        assert!(!over.is_null() && refusal.is_some(), "a run gets its memory, and an error");
        // SAFETY: as above.
        unsafe { release(ptr::null_mut(), over) };
        drop(account);
        assert_eq!(budget.used(), 0);
    }
}
