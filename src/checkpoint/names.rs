//! The names in order, and as C strings. Both are made when first asked for: most programs need only one of them, or none.

use std::ffi::c_char;
use std::sync::OnceLock;

#[derive(Debug, Default)]
pub(super) struct Names {
    /// All indices, in byte order of the names.
    sorted: OnceLock<Box<[usize]>>,
    c_names: OnceLock<CNames>,
}

#[derive(Debug)]
struct CNames(Box<[*const c_char]>);

// SAFETY: the pointers lead into the header's text, which belongs to the same checkpoint and never changes.
unsafe impl Send for CNames {}
// SAFETY: as for `Send`.
unsafe impl Sync for CNames {}

impl Names {
    /// The indices of the names that start with `prefix`: a run of the sorted order.
    pub(super) fn find_prefix<'n>(
        &self,
        prefix: &[u8],
        len: usize,
        name_of: impl Fn(usize) -> &'n [u8],
    ) -> Option<&[usize]> {
        let sorted = match self.sorted.get() {
            Some(sorted) => sorted,
            None => {
                let sorted = sort(len, &name_of)?;
                self.sorted.get_or_init(|| sorted)
            }
        };
        let start = sorted.partition_point(|index| name_of(*index) < prefix);
        let rest = sorted.get(start..)?;
        rest.get(..rest.partition_point(|index| name_of(*index).starts_with(prefix)))
    }

    /// The names, each followed by a NUL where it lies.
    pub(super) fn c_names<'n>(&self, len: usize, name_of: impl Fn(usize) -> &'n [u8]) -> Option<&[*const c_char]> {
        if self.c_names.get().is_none() {
            let mut names = Vec::new();
            names.try_reserve_exact(len).ok()?;
            names.extend((0..len).map(|index| name_of(index).as_ptr().cast()));
            // Another thread may have been faster; both have made the same.
            let _ = self.c_names.set(CNames(names.into_boxed_slice()));
        }
        self.c_names.get().map(|names| &*names.0)
    }
}

fn sort<'n>(len: usize, name_of: &impl Fn(usize) -> &'n [u8]) -> Option<Box<[usize]>> {
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(len).ok()?;
    sorted.extend(0..len);
    sorted.sort_unstable_by(|a, b| name_of(*a).cmp(name_of(*b)));
    Some(sorted.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAMES: [&[u8]; 6] = [b"layer.1.w", b"layer.10.w", b"layer.1.b", b"lm", b"", b"layer.2.w"];

    fn found(prefix: &[u8]) -> Vec<&'static [u8]> {
        let names = Names::default();
        names.find_prefix(prefix, NAMES.len(), |i| NAMES[i]).unwrap().iter().map(|i| NAMES[*i]).collect()
    }

    #[test]
    fn find_prefix_gives_a_sorted_run() {
        assert_eq!(found(b"layer.1."), [b"layer.1.b", b"layer.1.w"]);
        assert_eq!(found(b"layer.1"), [&b"layer.1.b"[..], b"layer.1.w", b"layer.10.w"]);
        assert_eq!(found(b"lm"), [b"lm"]);
        assert_eq!(found(b"").len(), NAMES.len());
        assert!(found(b"lz").is_empty() && found(b"a").is_empty() && found(b"lmx").is_empty());
    }

    #[test]
    fn find_prefix_and_c_names_of_nothing() {
        let names = Names::default();
        assert_eq!(names.find_prefix(b"", 0, |_| b""), Some(&[][..]));
        assert_eq!(names.c_names(0, |_| b""), Some(&[][..]));
    }

    #[test]
    fn c_names_are_made_once() {
        let names = Names::default();
        let first = names.c_names(NAMES.len(), |i| NAMES[i]).unwrap();
        assert_eq!(first[3], NAMES[3].as_ptr().cast());
        assert!(std::ptr::eq(first, names.c_names(NAMES.len(), |i| NAMES[i]).unwrap()));
    }
}
