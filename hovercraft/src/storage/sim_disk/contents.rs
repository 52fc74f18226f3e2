//! The bytes of a simulated file, in pages that its copies share.

use std::{ops::Range, sync::Arc};

const PAGE_BYTES: usize = 2048;

type Page = [u8; PAGE_BYTES];

const ZEROS: &Page = &[0; PAGE_BYTES];

/// What is in a file. Where only zeros were written there is no page.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pages: Vec<Option<Arc<Page>>>,
    len: usize,
    /// There is room for so many bytes, whatever else is written to the disk.
    reserved: usize,
}

impl Contents {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns how many bytes of the disk it takes.
    pub(super) fn taken(&self) -> usize {
        self.len.max(self.reserved)
    }

    /// Takes room for so many bytes.
    pub(super) fn reserve(&mut self, size_bytes: usize) {
        self.reserved = self.reserved.max(size_bytes);
    }

    /// Writes bytes, and so many zeros behind them.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8], zeros: usize) {
        let middle = offset + bytes.len();
        let end = middle + zeros;
        self.len = self.len.max(end);
        let page_count = self.len.div_ceil(PAGE_BYTES);
        self.pages.resize(page_count.max(self.pages.len()), None);
        let mut rest = bytes;
        for (page, within) in parts(offset..middle) {
            let part;
            (part, rest) = rest.split_at(within.len());
            self.write_part(page, within, part);
        }
        for (page, within) in parts(middle..end) {
            self.write_part(page, within.clone(), &ZEROS[within]);
        }
    }

    /// Fills the buffer from an offset on, as far as the file goes; returns how many bytes that is.
    pub(super) fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.len.saturating_sub(offset));
        let mut rest = &mut buffer[..count];
        for (page, within) in parts(offset..offset + count) {
            let part;
            (part, rest) = rest.split_at_mut(within.len());
            let page = self.pages[page].as_deref().unwrap_or(ZEROS);
            part.copy_from_slice(&page[within]);
        }
        count
    }

    /// Flips a bit; false if the file is shorter.
    pub(super) fn flip_bit(&mut self, offset: usize, bit: u8) -> bool {
        let mut byte = [0];
        if self.read(offset, &mut byte) == 0 {
            return false;
        }
        self.write(offset, &[byte[0] ^ (1 << (bit % 8))], 0);
        true
    }

    fn write_part(&mut self, page: usize, within: Range<usize>, part: &[u8]) {
        let page = &mut self.pages[page];
        if page.is_some() || part != &ZEROS[..part.len()] {
            let page = page.get_or_insert_with(|| Arc::new(*ZEROS));
            Arc::make_mut(page)[within].copy_from_slice(part);
        }
    }
}

/// So many bytes at the end are zeros; a part of a page may be counted out.
pub(super) fn zeros_at_end(bytes: &[u8]) -> usize {
    let pages = bytes.rchunks(PAGE_BYTES);
    pages.take_while(|page| *page == &ZEROS[..page.len()]).map(<[u8]>::len).sum()
}

/// The pages that a range touches, and the part of each.
fn parts(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        (at < range.end).then(|| {
            let (page, start) = (at / PAGE_BYTES, at % PAGE_BYTES);
            let end = PAGE_BYTES.min(start + range.end - at);
            at += end - start;
            (page, start..end)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn zeros_at_the_end_are_counted_by_pages() {
        let mut bytes = vec![1; 100];
        assert_eq!(zeros_at_end(&bytes), 0);
        bytes.resize(100 + 3 * PAGE_BYTES, 0);
        assert_eq!(zeros_at_end(&bytes), 3 * PAGE_BYTES);
        assert_eq!(zeros_at_end(&bytes[100..]), 3 * PAGE_BYTES);
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_bytes(
            writes in vec((0..9000usize, 0..3u8, 0..5000usize, 0..5000usize), 1..12),
        ) {
            let (mut contents, mut model) = (Contents::default(), Vec::new());
            for (offset, byte, len, zeros) in writes {
                let before = (contents.clone(), model.clone());
                let bytes = vec![byte; len];
                contents.write(offset, &bytes, zeros);
                let end = offset + len + zeros;
                model.resize(end.max(model.len()), 0);
                model[offset..offset + len].fill(byte);
                model[offset + len..end].fill(0);
                for (contents, model) in [(&contents, &model), (&before.0, &before.1)] {
                    let mut read = vec![7; model.len() + 10];
                    prop_assert_eq!(contents.read(0, &mut read), model.len());
                    prop_assert_eq!(&read[..model.len()], &model[..]);
                    prop_assert_eq!(contents.len(), model.len());
                    let mut tail = [7; 100];
                    let count = contents.read(offset, &mut tail);
                    let expected = &model[offset.min(model.len())..];
                    prop_assert_eq!(&tail[..count], &expected[..expected.len().min(100)]);
                }
            }
        }
    }
}
