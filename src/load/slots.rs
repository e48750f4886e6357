//! A table of bounded size, whose memory is allocated when it is made.

use crate::error::Error;

/// Values at numbers that stay theirs until they are removed.
#[derive(Debug)]
pub(super) struct Slots<T> {
    list: Vec<Slot<T>>,
    /// The last that was removed.
    free: Option<u32>,
    used: usize,
    most: usize,
}

#[derive(Debug)]
enum Slot<T> {
    Used(T),
    /// The next that is free.
    Free(Option<u32>),
}

impl<T> Slots<T> {
    /// For up to `most` values.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(most: usize) -> Result<Slots<T>, Error> {
        let mut list = Vec::new();
        u32::try_from(most).map_err(|_| Error::NoMemory)?;
        list.try_reserve_exact(most).map_err(|_| Error::NoMemory)?;
        Ok(Slots { list, free: None, used: 0, most })
    }

    /// How many more values it takes.
    pub(super) fn room(&self) -> usize {
        self.most - self.used
    }

    /// Adds a value, and gives its number. `None`: the table is full.
    pub(super) fn insert(&mut self, value: T) -> Option<u32> {
        if self.room() == 0 {
            return None;
        }
        let number = match self.free {
            Some(number) => {
                let slot = self.list.get_mut(number as usize)?;
                let Slot::Free(next) = *slot else { return None };
                *slot = Slot::Used(value);
                self.free = next;
                number
            }
            None => {
                // There is room: no memory is allocated here.
                self.list.push(Slot::Used(value));
                (self.list.len() - 1) as u32
            }
        };
        self.used += 1;
        Some(number)
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        match self.list.get(number as usize)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self.list.get_mut(number as usize)? {
            Slot::Used(value) => Some(value),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let slot = self.list.get_mut(number as usize)?;
        if matches!(slot, Slot::Free(_)) {
            return None;
        }
        let Slot::Used(value) = std::mem::replace(slot, Slot::Free(self.free)) else { return None };
        self.free = Some(number);
        self.used -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_keep_values_at_their_numbers_and_use_numbers_again() {
        let mut slots = Slots::new(3).unwrap();
        let numbers = ["a", "b", "c"].map(|value| slots.insert(value).unwrap());
        assert_eq!((slots.insert("d"), slots.room()), (None, 0));
        assert_eq!((slots.remove(numbers[1]), slots.remove(numbers[1])), (Some("b"), None));
        assert!(slots.get(numbers[1]).is_none() && slots.get_mut(numbers[1]).is_none() && slots.room() == 1);
        assert_eq!(slots.insert("e"), Some(numbers[1]));
        assert_eq!(numbers.map(|number| *slots.get(number).unwrap()), ["a", "e", "c"]);
        assert!(slots.get(3).is_none() && slots.remove(u32::MAX).is_none());
        for number in numbers {
            slots.remove(number).unwrap();
        }
        assert_eq!((0..5).filter(|_| slots.insert("f").is_some()).count(), 3);
        assert_eq!(slots.list.capacity(), 3);
    }

    #[test]
    fn new_says_when_there_is_no_memory() {
        assert!(matches!(Slots::<[u64; 1 << 40]>::new(1 << 20), Err(Error::NoMemory)));
        assert!(matches!(Slots::<u8>::new(usize::MAX), Err(Error::NoMemory)));
        assert_eq!(Slots::<u8>::new(0).unwrap().insert(1), None);
    }
}
