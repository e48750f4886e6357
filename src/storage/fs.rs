//! What lies beneath a file.

use super::pread::Reader;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// Whether page faults are a good way to read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileSystem {
    /// Pages come from a disk or from memory of this machine.
    Local,
    /// Pages come over a network or from another process (FUSE): each fault is a round trip, and a lost connection is a SIGBUS.
    Remote,
}

/// `f_type` of the file systems that are remote, from linux/magic.h and the file systems' own sources.
const REMOTE: [u32; 19] = [
    0x6969,      // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x517b,      // SMB
    0x6573_5546, // FUSE: sshfs, s3fs, gcsfuse, JuiceFS, most of what containers mount
    0x0102_1997, // 9P
    0x00c3_6400, // Ceph
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x1983_0326, // BeeGFS
    0xaad7_aaea, // PanFS
    0x2003_0528, // OrangeFS
    0x5346_414f, // AFS (OpenAFS)
    0x6b41_4653, // AFS (kernel)
    0x7375_7245, // Coda
    0x564c,      // NCP
    0x786f_4256, // VirtualBox shared folders
    0xbacb_acbc, // VMware shared folders
    0x00c0_ffee, // User-mode Linux host files
];

impl FileSystem {
    /// The kind of file system that `file` lies on; `Local` when the system does not say.
    pub(super) fn of(file: &File) -> FileSystem {
        let mut stat = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the descriptor is open as long as `file` is borrowed, and `stat` has room for what the call writes.
        if unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
            return FileSystem::Local;
        }
        // SAFETY: fstatfs has succeeded, and so has filled `stat` in.
        let magic = unsafe { stat.assume_init() }.f_type;
        // The type's width and sign differ between architectures; the numbers have 32 bits.
        FileSystem::from_magic(magic as u32)
    }

    fn from_magic(magic: u32) -> FileSystem {
        match REMOTE.contains(&magic) {
            true => FileSystem::Remote,
            false => FileSystem::Local,
        }
    }
}

/// The file systems of files that are opened together, which mostly lie on one.
#[derive(Debug, Default)]
pub(crate) struct FileSystems(OnceLock<(u64, FileSystem)>);

impl FileSystems {
    pub(super) fn of(&self, reader: &Reader) -> FileSystem {
        let device = reader.id().device();
        match self.0.get_or_init(|| (device, FileSystem::of(reader.file()))) {
            (known, file_system) if *known == device => *file_system,
            _ => FileSystem::of(reader.file()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_magic_knows_remote_file_systems() {
        const EXT4: u32 = 0xef53;
        const TMPFS: u32 = 0x0102_1994;
        const XFS: u32 = 0x5846_5342;
        for local in [EXT4, TMPFS, XFS] {
            assert_eq!(FileSystem::from_magic(local), FileSystem::Local);
        }
        assert_eq!(FileSystem::from_magic(libc::NFS_SUPER_MAGIC as u32), FileSystem::Remote);
        assert_eq!(FileSystem::from_magic(libc::FUSE_SUPER_MAGIC as u32), FileSystem::Remote);
        assert_eq!(FileSystem::from_magic(libc::SMB_SUPER_MAGIC as u32), FileSystem::Remote);
    }

    #[test]
    fn of_sees_a_temporary_file_as_local() {
        assert_eq!(FileSystem::of(&tempfile::tempfile().unwrap()), FileSystem::Local);
    }
}
