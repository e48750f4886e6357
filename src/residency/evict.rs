//! Letting pieces go: on demand, or to stay within the budget.
//!
//! A piece is claimed first, which fails if it is in use, and evicted then. Between the two it can be restored as if nothing had
//! happened.

use super::clock::Clock;
use super::ledger::{Books, Ledger};
use super::{AcquireError, InUse, Source};
use crate::storage::Buffer;

/// Copies that were evicted. To be declared before the lock is taken, so that they are freed after it: giving much memory back takes
/// long. For that moment memory can exceed the budget by what is on its way out.
#[derive(Debug, Default)]
pub(super) struct Freed(Vec<Buffer>);

impl Freed {
    fn push(&mut self, copy: Buffer) {
        #[cfg(test)]
        super::tests::mock::poison(&copy);
        // Without memory for the list it is freed at once.
        if self.0.try_reserve(1).is_ok() {
            self.0.push(copy);
        }
    }
}

impl<C: Clock> Ledger<C> {
    /// Evicts piece `index`, and says whether there was something to evict. What must not be evicted although nobody uses it stays.
    ///
    /// # Errors
    ///
    /// It is pinned or kept.
    pub(crate) fn evict(&self, index: usize, source: &dyn Source) -> Result<bool, InUse> {
        let mut freed = Freed::default();
        let mut books = self.lock();
        let Some(slot) = self.slot(index) else { return Ok(false) };
        match slot.claim() {
            Ok(()) => {
                books.claimed.clear();
                books.claimed.push(index);
                self.let_go(&mut books, source, &mut freed);
                drop(books);
                Ok(true)
            }
            Err(state) if state.is_in_use() => Err(InUse),
            Err(_) => Ok(false),
        }
    }

    /// Evicts all that is not in use.
    pub(crate) fn evict_all(&self, source: &dyn Source) {
        let mut freed = Freed::default();
        let mut books = self.lock();
        books.claimed.clear();
        let claimed = self.slots().iter().enumerate().filter(|(_, slot)| slot.claim().is_ok());
        books.claimed.extend(claimed.map(|(index, _)| index));
        self.let_go(&mut books, source, &mut freed);
        drop(books);
    }

    /// Changes the budget, and evicts what exceeds it as far as that is not in use. The rest goes when it is released.
    pub(crate) fn set_budget(&self, budget: u64, source: &dyn Source) {
        let mut freed = Freed::default();
        let mut books = self.lock();
        books.budget = budget;
        self.trim(&mut books, source, &mut freed);
        drop(books);
    }

    /// Evicts what is least recently used until `needed` more bytes fit. If they never will, nothing is evicted.
    pub(super) fn make_room(
        &self,
        books: &mut Books,
        needed: u64,
        source: &dyn Source,
        freed: &mut Freed,
    ) -> Result<(), AcquireError> {
        // Nothing takes no room, even where there is none.
        if needed == 0 {
            return Ok(());
        }
        let claimed = self.claim(books, needed, source);
        if !books.fits(needed, claimed) {
            self.restore(books);
            let in_use = books.charged.saturating_sub(claimed);
            return Err(AcquireError::Budget { needed, in_use, budget: books.budget });
        }
        self.let_go(books, source, freed);
        Ok(())
    }

    /// Evicts what exceeds the budget, as far as it is not in use.
    pub(super) fn trim(&self, books: &mut Books, source: &dyn Source, freed: &mut Freed) {
        self.claim(books, 0, source);
        self.let_go(books, source, freed);
    }

    /// Claims pieces, least recently used first, until `needed` more bytes would fit without them or there are no more. Gives their
    /// bytes.
    fn claim(&self, books: &mut Books, needed: u64, source: &dyn Source) -> u64 {
        books.claimed.clear();
        let mut nbytes = 0;
        if books.fits(needed, nbytes) {
            return nbytes;
        }
        let now = self.clock.now();
        while !books.fits(needed, nbytes) {
            let Some(index) = books.queue.claim_oldest(self.slots(), now) else { break };
            books.claimed.push(index);
            nbytes = nbytes.saturating_add(source.nbytes(index));
        }
        nbytes
    }

    /// Undoes [`Ledger::claim`].
    fn restore(&self, books: &mut Books) {
        for index in books.claimed.drain(..) {
            let Some(slot) = self.slot(index) else { continue };
            slot.restore();
            books.queue.push(slot.used(), index);
        }
    }

    /// Evicts what was claimed.
    fn let_go(&self, books: &mut Books, source: &dyn Source, freed: &mut Freed) {
        let Books { charged, copies, claimed, .. } = books;
        for index in claimed.iter() {
            *charged = charged.saturating_sub(source.nbytes(*index));
            if let Some(slot) = self.slot(*index) {
                slot.clear();
            }
        }
        // The books are right now, should the source panic.
        for index in claimed.drain(..) {
            match copies.remove(&index) {
                Some(copy) => freed.push(copy),
                None => source.drop_pages(index, &|other| self.is_held(other)),
            }
        }
    }

    /// Runs `drop_pages`, for pages of whatever pieces, and tells it which are held: nothing becomes held until it returns.
    pub(crate) fn drop_pages(&self, drop_pages: impl FnOnce(&dyn Fn(usize) -> bool)) {
        let _books = self.lock();
        drop_pages(&|index| self.is_held(index));
    }
}
