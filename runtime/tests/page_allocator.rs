//! Whether freed memory goes back to the system. Alone in its program: other tests' memory would be counted too.

use std::alloc::{GlobalAlloc, Layout};

use espalier_runtime::PageAllocator;
use espalier_runtime::gauges::anonymous_bytes;

#[test]
fn large_blocks_are_zero_when_asked_for_and_go_back_when_freed() -> espalier_runtime::Result<()> {
    let layout = Layout::from_size_align(64 << 20, 64).unwrap_or(Layout::new::<u8>());
    let before = anonymous_bytes()?;
    // SAFETY: the block is used within its size and given back with its layout.
    unsafe {
        let block = PageAllocator.alloc_zeroed(layout);
        assert!(!block.is_null());
        assert!((0..layout.size()).step_by(4096).all(|i| block.add(i).read() == 0));
        (0..layout.size()).step_by(4096).for_each(|i| block.add(i).write(1));
        assert!(anonymous_bytes()? >= before + (60 << 20));
        PageAllocator.dealloc(block, layout);
    }
    assert!(anonymous_bytes()? < before + (32 << 20));
    Ok(())
}
