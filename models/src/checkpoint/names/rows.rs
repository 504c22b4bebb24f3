//! Where the rows of a part lie in a tensor of a checkpoint.

use std::ops::Range;

/// Where the rows of a part lie in a source tensor: in blocks (heads) at even distances, in some order, each as it is or with the rows
/// that rotary embedding turns against each other side by side. For a vector a row is one number.
///
/// | source | block | stride | turned |
/// |--|--|--|--|
/// | parts one after the other | all rows | all rows | 0 |
/// | q, k and v of one head after the other (GPT-NeoX) | a head | 3 heads | 0 |
/// | rotary pairs `(2i, 2i + 1)` (ChatGLM, GGUF's llama) | a head | a head | rotary dimensions |
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checkpoint) struct RowOrder {
    /// The source's row of the first block.
    pub first: usize,
    /// Rows of a block; at least 1.
    pub block: usize,
    /// Source rows between the starts of neighbouring blocks.
    pub stride: usize,
    /// The place of every stored block in the source; none where blocks are stored in the source's order.
    pub places: Option<Vec<usize>>,
    /// How many rows of a block, from its first on, the source keeps as pairs `(2i, 2i + 1)` where ours are halves `(i, i + turned / 2)`.
    pub turned: usize,
}

/// Rows that follow each other both in the part and in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) struct Run {
    /// The first row of the part.
    pub stored: usize,
    /// The same row of the source.
    pub source: usize,
    /// Rows.
    pub count: usize,
}

impl RowOrder {
    /// `rows` rows in their order, from the source's row `first` on.
    pub fn contiguous(first: usize, rows: usize) -> Self {
        Self { first, block: rows.max(1), stride: rows, places: None, turned: 0 }
    }

    /// The source's row of the part's row `row`.
    pub fn source(&self, row: usize) -> usize {
        let (block, within) = (row / self.block, row % self.block);
        let place = self.places.as_ref().map_or(block, |places| places[block]);
        let half = self.turned / 2;
        let within = match within {
            low if low < half => 2 * low,
            high if high < self.turned => 2 * (high - half) + 1,
            rest => rest,
        };
        self.first + place * self.stride + within
    }

    /// The part's rows `rows` as the longest runs, in ascending order.
    pub fn runs(&self, rows: Range<usize>) -> impl Iterator<Item = Run> + '_ {
        let mut next = rows.start;
        std::iter::from_fn(move || {
            if next >= rows.end {
                return None;
            }
            let (stored, source) = (next, self.source(next));
            next += 1;
            while next < rows.end && self.source(next) == source + (next - stored) {
                next += 1;
            }
            Some(Run { stored, source, count: next - stored })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_lie_where_the_families_put_them() {
        let pairs = RowOrder { first: 0, block: 6, stride: 6, places: None, turned: 4 };
        let neox = RowOrder { first: 2, block: 2, stride: 6, places: None, turned: 0 };
        let sorted = RowOrder { first: 1, block: 2, stride: 2, places: Some(vec![2, 0, 1]), turned: 0 };
        let rows = |order: &RowOrder, count: usize| (0..count).map(|row| order.source(row)).collect::<Vec<_>>();
        assert_eq!(rows(&RowOrder::contiguous(3, 4), 4), [3, 4, 5, 6]);
        assert_eq!(rows(&pairs, 12), [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]);
        assert_eq!(rows(&neox, 6), [2, 3, 8, 9, 14, 15], "keys of heads of 2, after the queries");
        assert_eq!(rows(&sorted, 6), [5, 6, 1, 2, 3, 4]);
        assert_eq!(neox.runs(1..6).map(|run| (run.stored, run.source, run.count)).collect::<Vec<_>>(), [(1, 3, 1), (2, 8, 2), (4, 14, 2)]);
        assert_eq!(RowOrder::contiguous(7, 0).runs(0..0).next(), None);
    }

    proptest! {
        #[test]
        fn every_row_of_the_source_belongs_to_one_row_of_one_part(
            heads in 1usize..6, half in 0usize..4, rest in 0usize..4, parts in 1usize..4, fused in any::<bool>(), seed in any::<usize>(),
        ) {
            let block = 2 * half + rest;
            prop_assume!(block > 0);
            let mut places: Vec<usize> = (0..heads).collect();
            places.rotate_left(seed % heads);
            let mut seen = vec![0; parts * heads * block];
            for part in 0..parts {
                let (first, stride) = if fused { (part * block, parts * block) } else { (part * heads * block, block) };
                let order = RowOrder { first, block, stride, places: Some(places.clone()), turned: 2 * half };
                let mut expected = 0;
                for run in order.runs(0..heads * block) {
                    prop_assert_eq!(run.stored, expected);
                    expected += run.count;
                    for offset in 0..run.count {
                        prop_assert_eq!(order.source(run.stored + offset), run.source + offset);
                        seen[run.source + offset] += 1;
                    }
                }
                prop_assert_eq!(expected, heads * block);
            }
            prop_assert!(seen.iter().all(|count| *count == 1), "{:?}", seen);
        }
    }
}
