//! Lists from which things are taken out and put back in the opposite order, at no cost (Knuth's
//! dancing links).

/// Things 0, 1, 2, …, in this order, those that are in.
#[derive(Debug)]
pub(super) struct UndoList {
    /// Of each, and behind the last one of the list itself.
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl UndoList {
    /// All of `count` things.
    pub(super) fn new(count: usize) -> Self {
        let end = u32::try_from(count).expect("a history has fewer than 2^31 operations");
        let next = (1..=end).chain([0]).collect();
        let previous = [end].into_iter().chain(0..end).collect();
        Self { next, previous }
    }

    /// The first one, and those behind it.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let end = self.end();
        let next = move |at: &u32| Some(self.next[*at as usize]);
        std::iter::successors(Some(self.next[end as usize]), next).take_while(move |at| *at != end)
    }

    pub(super) fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// Takes out one that is in.
    pub(super) fn take(&mut self, at: u32) {
        let (previous, next) = (self.previous[at as usize], self.next[at as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
    }

    /// Puts back the one of those that are out that was taken last.
    pub(super) fn put_back(&mut self, at: u32) {
        let (previous, next) = (self.previous[at as usize], self.next[at as usize]);
        self.next[previous as usize] = at;
        self.previous[next as usize] = at;
    }

    fn end(&self) -> u32 {
        self.next.len() as u32 - 1
    }

    pub(super) fn bytes(&self) -> usize {
        2 * self.next.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_put_back_where_it_was() {
        let mut list = UndoList::new(4);
        let all = |list: &UndoList| list.iter().collect::<Vec<_>>();
        assert_eq!(all(&list), [0, 1, 2, 3]);
        for at in [1, 0, 3, 2] {
            list.take(at);
        }
        assert_eq!((all(&list), list.first()), (vec![], None));
        list.put_back(2);
        list.put_back(3);
        assert_eq!(all(&list), [2, 3]);
        list.put_back(0);
        list.put_back(1);
        assert_eq!(all(&list), [0, 1, 2, 3]);
        assert!(all(&UndoList::new(0)).is_empty());
    }
}
