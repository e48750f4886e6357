//! How to load: what callers choose, and what becomes of it.

use super::request::Destination;
use super::state::Work;
use super::worker::Means;
use crate::error::Error;
use crate::storage::PAGE;
use std::ops::RangeInclusive;

/// A way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// Copies out of the caller's memory.
    Memory,
    /// Reads through the page cache.
    Buffered,
    /// Reads around the page cache, one by each thread.
    Direct,
    /// Reads around the page cache, many at once by each thread, through io_uring.
    Uring,
}

impl Engine {
    /// All of them.
    pub(super) const ALL: [Engine; 4] = [Engine::Memory, Engine::Buffered, Engine::Direct, Engine::Uring];
}

/// Memory for requests without a destination.
#[derive(Debug)]
pub enum Staging {
    /// The library's own, of at most so many bytes; 0 is 256 MiB.
    Own(usize),
    /// The caller's.
    Given(Destination),
}

impl Default for Staging {
    fn default() -> Staging {
        Staging::Own(0)
    }
}

/// How to load. 0 and `None` leave a choice to the library.
#[derive(Debug, Default)]
pub struct LoadOptions {
    /// Deliver in the order of the requests. Without this they come as they are complete, and are read in the order of the files.
    pub in_order: bool,
    /// The only engine to use, where the system lets it. Otherwise, for each part of each file: [`Engine::Buffered`] for what the page
    /// cache has; else [`Engine::Uring`], or on network and FUSE file systems [`Engine::Direct`], or the next best that is not refused.
    pub engine: Option<Engine>,
    /// Threads that read. Never more than 64, nor than there is work for. 0 leaves the number to the library, which starts none for a load of
    /// less than a block; a number starts threads for that, too.
    pub workers: usize,
    /// Reads that are under way at once around the page cache, by all threads together: at most 1024.
    pub queue_depth: usize,
    /// The most bytes of one read: a multiple of 4096, from 64 KiB to 64 MiB.
    pub block_bytes: usize,
    /// Memory for requests without a destination, of 64 KiB or more.
    pub staging: Staging,
    /// The most bytes of a staged request that are delivered at once: 4096 or more. Otherwise as much as the staging memory holds.
    pub piece_bytes: usize,
    /// Gaps between requests that are read through to save a read, in percent of the wanted bytes. `None` is 10.
    pub over_read: Option<u32>,
}

/// Block size where none was asked for. Measured (`scripts/bench load tune`): smaller ones cost more calls, larger ones leave
/// threads without work at the end.
const BLOCK_BYTES: usize = 4 * 1024 * 1024;
const BLOCKS: RangeInclusive<usize> = 64 * 1024..=64 * 1024 * 1024;

/// Over a network or FUSE each system call waits for a round trip.
const REMOTE_WORKERS: usize = 32;

/// A few more than cores, since they wait; but huge pages, which are zeroed when they are first written to, keep a core busy each.
const WORKERS: RangeInclusive<usize> = 4..=16;
const MOST_WORKERS: usize = 64;

/// Enough to keep a disk busy with large reads. Of small ones, as slices take, many more may be under way.
const BLOCKS_AT_ONCE: usize = 16;
pub(super) const QUEUE_DEPTH: usize = 64;
const MOST_DEPTH: usize = 1024;

/// The most memory for reads that cannot go where they should, of all threads together; and of one block, which is 1 MiB if there are few.
const BOUNCE_BYTES: u64 = 16 * 1024 * 1024;
const MOST_BOUNCE: u64 = 1024 * 1024;
pub(super) const LEAST_BOUNCE: u64 = 128 * 1024;

const STAGING_BYTES: usize = 256 * 1024 * 1024;
const LEAST_STAGING: usize = 64 * 1024;

const LEAST_PIECE: usize = PAGE as usize;

const OVER_READ_PERCENT: u32 = 10;

/// Options, checked, with every choice made.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) in_order: bool,
    pub(super) engine: Option<Engine>,
    /// As many as were asked for; 0: to be chosen when it is known that threads are wanted, since that looks at the machine.
    pub(super) workers: usize,
    /// As was asked for, or 0.
    queue_depth: usize,
    pub(super) block_bytes: u64,
    pub(super) staging: Staging,
    pub(super) piece_bytes: u64,
    pub(super) over_read: u64,
}

impl Settings {
    pub(super) fn new(options: LoadOptions) -> Result<Settings, Error> {
        let LoadOptions { in_order, engine, workers, queue_depth, block_bytes, staging, piece_bytes, over_read } =
            options;
        check(queue_depth <= MOST_DEPTH, || format!("a queue depth of {queue_depth} is more than {MOST_DEPTH}"))?;
        check(block_bytes == 0 || (BLOCKS.contains(&block_bytes) && block_bytes as u64 % PAGE == 0), || {
            format!("blocks of {block_bytes} bytes are not a multiple of {PAGE} from 64 KiB to 64 MiB")
        })?;
        check(piece_bytes == 0 || piece_bytes >= LEAST_PIECE, || {
            format!("pieces of {piece_bytes} bytes are less than {LEAST_PIECE}")
        })?;
        let staging = match staging {
            Staging::Own(0) => Staging::Own(STAGING_BYTES),
            chosen => chosen,
        };
        let (Staging::Own(staging_bytes) | Staging::Given(Destination { len: staging_bytes, .. })) = &staging;
        check(*staging_bytes >= LEAST_STAGING, || {
            format!("staging memory of {staging_bytes} bytes is less than 64 KiB")
        })?;
        Ok(Settings {
            in_order,
            engine,
            workers: workers.min(MOST_WORKERS),
            queue_depth,
            block_bytes: if block_bytes == 0 { BLOCK_BYTES } else { block_bytes } as u64,
            staging,
            piece_bytes: if piece_bytes == 0 { u64::MAX } else { piece_bytes as u64 },
            over_read: u64::from(over_read.unwrap_or(OVER_READ_PERCENT)),
        })
    }
}

impl Settings {
    /// The number of threads, of reads that are under way at once, and of blocks of which they are. For files of which some are on a network
    /// or FUSE file system, or none is.
    fn at_once(&self, remote: bool) -> (usize, usize, usize) {
        let workers = match self.workers {
            0 if remote => REMOTE_WORKERS,
            0 => default_workers(),
            asked => asked,
        };
        let is_around_cache = self.engine.is_none_or(|engine| matches!(engine, Engine::Direct | Engine::Uring));
        match self.queue_depth {
            0 => (workers, QUEUE_DEPTH.max(workers), BLOCKS_AT_ONCE.max(workers)),
            // Each worker has one read under way at least.
            depth if is_around_cache => (workers.min(depth), depth, depth),
            depth => (workers, depth, depth),
        }
    }

    /// The number of threads for a load, and what each may have under way. Sets how much of a block may have to be copied.
    pub(super) fn means_of_workers(&self, remote: bool, work: &mut Work) -> (usize, Means) {
        let (workers, queue_depth, blocks_at_once) = self.at_once(remote);
        // For each worker as many as it has blocks under way, and four at least: of 1 MiB if these are few.
        let bounces_of_worker = BOUNCE_BYTES / workers.max(1) as u64;
        let bounces = (blocks_at_once / workers.max(1)).max(4) as u64;
        let bounce =
            (bounces_of_worker / bounces / PAGE * PAGE).clamp(LEAST_BOUNCE, MOST_BOUNCE).min(bounces_of_worker);
        work.limits.bounce = bounce;
        let workers = work.blocks().min(workers as u64) as usize;
        let means = Means {
            depth: (queue_depth / workers.max(1)).max(1),
            jobs: (blocks_at_once / workers.max(1)).max(1),
            bounces: (bounces_of_worker / bounce) as usize,
            bounce_bytes: bounce,
        };
        (workers, means)
    }

    /// What the caller's thread may have under way of a small load, with no more memory for what has to be copied than that can need.
    pub(super) fn means_of_caller(&self, work: &mut Work) -> Means {
        let needed = work.bounced();
        let bounce = needed.clamp(LEAST_BOUNCE, MOST_BOUNCE);
        work.limits.bounce = bounce;
        let depth = if self.queue_depth == 0 { QUEUE_DEPTH } else { self.queue_depth };
        Means {
            depth,
            jobs: BLOCKS_AT_ONCE,
            bounces: needed.div_ceil(bounce).clamp(1, 4) as usize,
            bounce_bytes: bounce,
        }
    }
}

fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    (2 * cores).clamp(*WORKERS.start(), *WORKERS.end())
}

fn check(is_right: bool, what: impl FnOnce() -> String) -> Result<(), Error> {
    match is_right {
        true => Ok(()),
        false => Err(Error::InvalidArgument { what: what() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_makes_every_choice() {
        let settings = Settings::new(LoadOptions::default()).unwrap();
        assert!(matches!(settings.staging, Staging::Own(STAGING_BYTES)));
        let (workers, queue_depth, _) = settings.at_once(false);
        assert!(WORKERS.contains(&workers) && queue_depth == QUEUE_DEPTH);
        assert_eq!((settings.block_bytes, settings.piece_bytes, settings.over_read), (4 << 20, u64::MAX, 10));
        let settings = Settings::new(LoadOptions { workers: 100, over_read: Some(0), ..Default::default() }).unwrap();
        assert_eq!((settings.at_once(true).0, settings.block_bytes, settings.over_read), (64, 4 << 20, 0));
        let few = |engine, remote| {
            Settings::new(LoadOptions { engine, workers: 8, queue_depth: 3, ..Default::default() })
                .unwrap()
                .at_once(remote)
                .0
        };
        assert_eq!((few(None, false), few(None, true), few(Some(Engine::Buffered), true)), (3, 3, 8));
    }

    #[test]
    fn new_refuses_numbers_out_of_range_and_says_which() {
        let refused = |change: fn(&mut LoadOptions)| {
            let mut options = LoadOptions::default();
            change(&mut options);
            Settings::new(options).unwrap_err().to_string()
        };
        assert!(refused(|options| options.queue_depth = 1025).contains("1025"));
        assert!(refused(|options| options.block_bytes = 65537).contains("65537"));
        assert!(refused(|options| options.block_bytes = 4096).contains("4096"));
        assert!(refused(|options| options.piece_bytes = 4095).contains("4095"));
        assert!(refused(|options| options.staging = Staging::Own(65535)).contains("65535"));
    }
}
