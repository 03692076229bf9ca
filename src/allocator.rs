//! The program's allocator: the system's, asked to keep what is freed and to use large pages.
//!
//! A training step takes and frees the same blocks of megabytes again and again. By default the C
//! library hands them back to the system, which zeroes them page by page when they are next
//! touched; and in pages of 4 KiB a product that walks down a column misses the processor's table
//! of pages (the TLB) at almost every step. Linux gives pages of 2 MiB to who asks for them
//! (`madvise`), unless `/sys/kernel/mm/transparent_hugepage/enabled` says `never`; but a range of
//! 2 MiB in which one small page was touched stays small, so the heap is advised as it grows.
//!
//! Blocks of more than 32 MiB get a mapping of their own and give it back when they are freed. The C
//! library would cut them from the heap where there is room, and some are never touched: libraries
//! of products reserve 64 MiB a thread, which in the heap would lie on memory that was touched.
//!
//! All of this is a wish: where a system does not know it, memory is as it always was.

use std::alloc::{GlobalAlloc, Layout, System};

/// Bytes from which a block asks for large pages: smaller ones are not worth a look.
const LARGE: usize = 256 << 10;

/// The system's allocator, which asks for large pages behind blocks of 256 KiB and more.
///
/// Values are the same as with any other allocator.
pub struct LargePages;

#[inline]
fn wish(block: *mut u8, size: usize) {
    if size >= LARGE && !block.is_null() {
        pages::ask(block as usize, size);
    }
}

/// Has the C library keep freed memory for the next block; to be called once, before other threads
/// are started.
pub fn keep_freed_memory() {
    pages::keep_freed_memory();
}

// SAFETY: a block is the system allocator's or a mapping of its own, by its size and alignment alone,
// so that it is freed as it was taken.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let block = match pages::are_for(layout) {
            true => pages::map(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { System.alloc(layout) },
        };
        wish(block, layout.size());
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let block = match pages::are_for(layout) {
            // The system gives none but empty pages.
            true => pages::map(layout.size()),
            // SAFETY: the caller's promise.
            false => unsafe { System.alloc_zeroed(layout) },
        };
        wish(block, layout.size());
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size is one of this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let resized = match (pages::are_for(layout), pages::are_for(new)) {
            // SAFETY: the caller's promise.
            (false, false) => unsafe { System.realloc(block, layout, size) },
            // SAFETY: the block is a mapping of this size.
            (true, true) => unsafe { pages::remap(block, layout.size(), size) },
            // SAFETY: the caller's promise; two blocks do not overlap.
            _ => unsafe {
                let resized = self.alloc(new);
                if !resized.is_null() {
                    resized.copy_from_nonoverlapping(block, layout.size().min(size));
                    self.dealloc(block, layout);
                }
                resized
            },
        };
        wish(resized, size);
        resized
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match pages::are_for(layout) {
            // SAFETY: the block is a mapping of this size.
            true => unsafe { pages::unmap(block, layout.size()) },
            // SAFETY: the caller's promise.
            false => unsafe { System.dealloc(block, layout) },
        }
    }
}

#[cfg(target_os = "linux")]
mod pages {
    use std::alloc::Layout;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    const PAGE: usize = 4096;
    /// Largest block that lies in the heap, and stays with the process when it is freed: the most
    /// that the C library allows. It comes to the same by itself, block by block.
    const LARGEST_IN_HEAP: usize = 32 << 20;
    /// Steps in which the heap grows, so that almost none of it is touched before it is advised;
    /// what nobody touches takes no memory.
    #[cfg(target_env = "gnu")]
    const GROWTH: libc::c_int = 64 << 20;

    /// Cores that share an arena. By default every thread has one of its own, and what is freed in
    /// it is of no use to the others; one for all of many cores would have them wait for each other.
    #[cfg(target_env = "gnu")]
    const CORES_PER_ARENA: usize = 4;

    /// First address of the heap; the last of all until [`keep_freed_memory`] has found it.
    static HEAP: AtomicUsize = AtomicUsize::new(usize::MAX);
    /// End of what has been advised of it.
    static ADVISED: AtomicUsize = AtomicUsize::new(0);

    /// Whether such a block gets pages of its own.
    #[inline]
    pub fn are_for(layout: Layout) -> bool {
        layout.size() > LARGEST_IN_HEAP && layout.align() <= PAGE
    }

    /// So many bytes of empty pages; null where there are none.
    #[cold]
    pub fn map(size: usize) -> *mut u8 {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages, of no file, wherever the system likes.
        block_of(unsafe { libc::mmap(null_mut(), size, access, kind, -1, 0) })
    }

    /// Makes a mapping larger or smaller, wherever it then lies.
    ///
    /// # Safety
    /// The block is a mapping of this size, which nobody uses meanwhile.
    #[cold]
    pub unsafe fn remap(block: *mut u8, size: usize, new: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        block_of(unsafe { libc::mremap(block.cast(), size, new, libc::MREMAP_MAYMOVE) })
    }

    /// Gives a mapping back.
    ///
    /// # Safety
    /// The block is a mapping of this size, which nobody uses any more.
    #[cold]
    pub unsafe fn unmap(block: *mut u8, size: usize) {
        // SAFETY: the caller's promise. It cannot fail for a whole mapping.
        unsafe { libc::munmap(block.cast(), size) };
    }

    fn block_of(mapping: *mut libc::c_void) -> *mut u8 {
        if mapping == libc::MAP_FAILED { null_mut() } else { mapping.cast() }
    }

    /// Asks for large pages behind a block.
    #[cold]
    pub fn ask(block: usize, size: usize) {
        let heap = HEAP.load(Relaxed);
        if block < heap {
            return advise(block, block + size);
        }
        let end = heap_end();
        if block >= end {
            return advise(block, block + size);
        }
        // Two threads may advise the same part; nobody misses one.
        let advised = ADVISED.fetch_max(end, Relaxed);
        if advised < end {
            advise(advised.max(heap), end);
        }
    }

    fn advise(from: usize, to: usize) {
        let start = from / PAGE * PAGE;
        let length = to.next_multiple_of(PAGE) - start;
        // SAFETY: this advice changes no byte of the pages, whoever owns what lies beside the block
        // on the first and the last one; a range that the system does not take is an error that we
        // pass over.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
    }

    fn heap_end() -> usize {
        // SAFETY: an increment of 0 moves nothing.
        unsafe { libc::sbrk(0) as usize }
    }

    #[cfg(target_env = "gnu")]
    pub fn keep_freed_memory() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = cores.div_ceil(CORES_PER_ARENA).min(1 << 10) as libc::c_int;
        // SAFETY: these set bounds that the C library reads under its own locks when it next
        // allocates or frees; values that it does not take change nothing.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, arenas);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_IN_HEAP as libc::c_int);
            libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
            libc::mallopt(libc::M_TOP_PAD, GROWTH);
        }
        let end = heap_end();
        ADVISED.store(end, Relaxed);
        HEAP.store(end, Relaxed);
    }

    #[cfg(not(target_env = "gnu"))]
    pub fn keep_freed_memory() {}
}

#[cfg(not(target_os = "linux"))]
mod pages {
    use std::alloc::Layout;

    pub fn ask(_block: usize, _size: usize) {}
    pub fn keep_freed_memory() {}
    pub fn are_for(_layout: Layout) -> bool {
        false
    }
    pub fn map(_size: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
    pub unsafe fn remap(_block: *mut u8, _size: usize, _new: usize) -> *mut u8 {
        std::ptr::null_mut()
    }
    pub unsafe fn unmap(_block: *mut u8, _size: usize) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::path::Path;

    /// Flags of the mapping that an address lies in, as the kernel tells them; `hg` is the wish.
    fn flags(address: usize) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").expect("the mappings");
        let mut inside = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds = range.and_then(|(from, to)| {
                let hex = |text| usize::from_str_radix(text, 16).ok();
                Some((hex(from)?, hex(to)?))
            });
            if let Some((from, to)) = bounds {
                inside = (from..to).contains(&address);
            }
            if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.to_owned();
            }
        }
        panic!("{address:x} lies in no mapping")
    }

    #[test]
    fn large_blocks_ask_for_large_pages_and_hold_what_is_written() {
        let has_large_pages = Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        for size in [1, LARGE - 1, LARGE, (32 << 20) - LARGE / 2, 40 << 20] {
            let layout = Layout::from_size_align(size, 8).expect("a layout");
            // SAFETY: the layout is not empty, the block is used within it and freed with it.
            unsafe {
                let block = LargePages.alloc_zeroed(layout);
                assert_eq!((*block, *block.add(size - 1)), (0, 0));
                block.write(3);
                block.add(size - 1).write(7);
                let written = (*block, 7);
                if size >= LARGE && has_large_pages {
                    let flags = flags(block as usize + size / 2);
                    assert!(flags.contains(" hg"), "{size}: {flags}");
                }
                let block = LargePages.realloc(block, layout, size + LARGE);
                assert_eq!((*block, *block.add(size - 1)), written);
                let grown = Layout::from_size_align(size + LARGE, 8).expect("a layout");
                let block = LargePages.realloc(block, grown, size);
                assert_eq!((*block, *block.add(size - 1)), written);
                LargePages.dealloc(block, layout);
            }
        }
    }
}
