//! A Parquet column of text, written from runs of words.
//!
//! Rows are sorted by series, so text repeats itself from row to row and is known as words already. The library's own
//! writer would hash and compare the text of every row to build its dictionary, which was nearly half of all that a
//! sample cost the relay. Here each word of a row group is looked at once, and a run of rows is one step.
//!
//! A chunk is one dictionary page and one data page of format 1, as other writers make them: hybrid of runs and packed
//! bits, zstd. Headers, offsets and the footer are the library's.

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, SerializedRowGroupWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::sheet::ZSTD_LEVEL;

/// Packed values stand in groups of eight, of which one header byte can count this many.
const PACKED_MAX: usize = 63 * 8;
const UNSEEN: u32 = u32::MAX;

/// Numbers, as runs of the same.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: Vec<(u32, u32)>,
    len: usize,
}

impl Runs {
    /// So many of this number.
    pub(super) fn push(&mut self, number: u32, len: usize) {
        if len == 0 {
            return;
        }
        self.len += len;
        let more = u32::try_from(len).unwrap_or(u32::MAX);
        match self.runs.last_mut() {
            Some((last, have)) if *last == number => *have += more,
            Some(_) | None => self.runs.push((number, more)),
        }
    }

    /// How many numbers.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn clear(&mut self) {
        self.runs.clear();
        self.len = 0;
    }

    /// In Parquet's hybrid of runs and packed bits.
    fn encode(&self, bits: u8, out: &mut Vec<u8>) {
        let mut hybrid = Hybrid { bits, packed: Vec::with_capacity(PACKED_MAX), out };
        for &(number, len) in &self.runs {
            hybrid.push(number, len as usize);
        }
        hybrid.flush();
    }
}

/// How often rows repeat and whether they hold anything: the levels of a repeated column, encoded.
#[derive(Debug, Default)]
pub(super) struct Levels {
    repetition: Runs,
    definition: Runs,
}

impl Levels {
    /// A row with so many entries.
    pub(super) fn push(&mut self, entries: usize) {
        self.repetition.push(0, 1);
        self.repetition.push(1, entries.saturating_sub(1));
        self.definition.push(u32::from(entries > 0), entries.max(1));
    }

    /// Entries, and rows without any.
    fn len(&self) -> usize {
        self.repetition.len()
    }

    pub(super) fn clear(&mut self) {
        self.repetition.clear();
        self.definition.clear();
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for levels in [&self.repetition, &self.definition] {
            let start = out.len();
            out.extend_from_slice(&[0; 4]);
            levels.encode(1, out);
            let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
            out[start..start + 4].copy_from_slice(&len.to_le_bytes());
        }
    }
}

struct Hybrid<'a> {
    bits: u8,
    packed: Vec<u32>,
    out: &'a mut Vec<u8>,
}

impl Hybrid<'_> {
    fn push(&mut self, number: u32, mut len: usize) {
        let room = self.packed.len().next_multiple_of(8) - self.packed.len();
        let fill = if len - room.min(len) < 8 { len } else { room };
        self.packed.extend(std::iter::repeat_n(number, fill));
        len -= fill;
        if len > 0 {
            self.flush();
            self.varint((len as u64) << 1);
            let bytes = usize::from(self.bits).div_ceil(8);
            self.out.extend_from_slice(&number.to_le_bytes()[..bytes]);
        }
        if self.packed.len() >= PACKED_MAX {
            self.flush_full();
        }
    }

    /// What fills headers whole; the rest may still grow.
    fn flush_full(&mut self) {
        let rest = self.packed.split_off(self.packed.len() / PACKED_MAX * PACKED_MAX);
        self.flush();
        self.packed = rest;
    }

    fn flush(&mut self) {
        let packed = std::mem::take(&mut self.packed);
        for some in packed.chunks(PACKED_MAX) {
            let groups = some.len().div_ceil(8);
            self.varint((groups as u64) << 1 | 1);
            let (mut word, mut filled) = (0u64, 0);
            let padding = groups * 8 - some.len();
            for &number in some.iter().chain(std::iter::repeat_n(&0, padding)) {
                word |= u64::from(number) << filled;
                filled += u32::from(self.bits);
                while filled >= 8 {
                    self.out.push((word & 0xff) as u8);
                    word >>= 8;
                    filled -= 8;
                }
            }
        }
        self.packed = packed;
        self.packed.clear();
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.out.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        self.out.push((number & 0x7f) as u8);
    }
}

/// Writes columns of text; holds what is worth reusing between them.
pub(super) struct TextWriter<'a> {
    words: &'a [&'a str],
    /// Of each word: its place in the dictionary of the column that is being written.
    places: Vec<u32>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl<'a> TextWriter<'a> {
    /// A writer of columns of these words.
    ///
    /// # Errors
    /// Never, as far as zstd promises.
    pub(super) fn new(words: &'a [&'a str]) -> Result<Self, ParquetError> {
        Ok(Self { words, places: vec![UNSEEN; words.len()], compressor: zstd::bulk::Compressor::new(ZSTD_LEVEL)? })
    }

    /// Writes the next column of a row group: the words, and where rows hold any number of them, how many.
    ///
    /// # Errors
    /// When this is not the next column, or does not have the rows of the others.
    pub(super) fn write(
        &mut self,
        group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
        column: &ColumnDescPtr,
        keys: &Runs,
        levels: Option<&Levels>,
        rows: usize,
    ) -> Result<(), ParquetError> {
        let (dictionary, keys) = self.dictionary(keys);
        let values = levels.map_or(keys.len(), Levels::len);
        let num_values = |len: usize| u32::try_from(len).map_err(|error| ParquetError::External(Box::new(error)));
        let mut text = Vec::new();
        // A column without any value has an empty word: not every reader takes a page of nothing.
        for word in dictionary.iter().map(|&word| self.words[word as usize]).chain(dictionary.is_empty().then_some(""))
        {
            text.extend_from_slice(&num_values(word.len())?.to_le_bytes());
            text.extend_from_slice(word.as_bytes());
        }
        let mut data = Vec::new();
        if let Some(levels) = levels {
            levels.encode(&mut data);
        }
        let bits = u8::try_from((dictionary.len().max(2) - 1).ilog2() + 1).unwrap_or(u8::MAX);
        data.push(bits);
        keys.encode(bits, &mut data);

        let mut sink = TrackedWrite::new(Vec::new());
        let mut pages = SerializedPageWriter::new(&mut sink);
        let page = Page::DictionaryPage {
            buf: self.compressor.compress(&text)?.into(),
            num_values: num_values(dictionary.len().max(1))?,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        let first = pages.write_page(CompressedPage::new(page, text.len()))?;
        let page = Page::DataPage {
            buf: self.compressor.compress(&data)?.into(),
            num_values: num_values(values)?,
            encoding: Encoding::RLE_DICTIONARY,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let second = pages.write_page(CompressedPage::new(page, data.len()))?;
        pages.close()?;
        let size = |first: usize, second: usize| i64::try_from(first + second).unwrap_or(i64::MAX);
        let mut metadata = ColumnChunkMetaData::builder(ColumnDescPtr::clone(column))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY])
            .set_total_compressed_size(size(first.compressed_size, second.compressed_size))
            .set_total_uncompressed_size(size(first.uncompressed_size, second.uncompressed_size))
            .set_num_values(size(values, 0))
            .set_dictionary_page_offset(Some(size(0, 0)))
            .set_data_page_offset(i64::try_from(second.offset).unwrap_or(i64::MAX));
        if levels.is_none() {
            metadata = metadata.set_statistics(self.statistics(&dictionary));
        }
        let close = ColumnCloseResult {
            bytes_written: first.bytes_written + second.bytes_written,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        group.append_column(&bytes::Bytes::from(sink.into_inner()?), close)
    }

    /// The words in the order in which they come first, and the keys as places among them.
    fn dictionary(&mut self, keys: &Runs) -> (Vec<u32>, Runs) {
        let mut dictionary = Vec::new();
        let mut places = Runs { runs: Vec::with_capacity(keys.runs.len()), len: keys.len };
        for &(word, len) in &keys.runs {
            let place = &mut self.places[word as usize];
            if *place == UNSEEN {
                *place = u32::try_from(dictionary.len()).unwrap_or(UNSEEN);
                dictionary.push(word);
            }
            places.runs.push((*place, len));
        }
        for &word in &dictionary {
            self.places[word as usize] = UNSEEN;
        }
        (dictionary, places)
    }

    fn statistics(&self, dictionary: &[u32]) -> Statistics {
        let words = || dictionary.iter().map(|&word| self.words[word as usize]);
        let bytes = |word: &str| ByteArray::from(word.as_bytes().to_vec());
        let (min, max) = (words().min().map(bytes), words().max().map(bytes));
        Statistics::ByteArray(ValueStatistics::new(min, max, None, Some(0), false))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(mut bytes: &[u8], bits: u8, count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let (mut header, mut shift) = (0u64, 0);
            loop {
                let (&byte, rest) = bytes.split_first().unwrap();
                bytes = rest;
                header |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let len = (header >> 1) as usize;
            if header & 1 == 0 {
                let (value, rest) = bytes.split_at(usize::from(bits).div_ceil(8));
                bytes = rest;
                let value = value.iter().rev().fold(0u32, |all, &byte| all << 8 | u32::from(byte));
                numbers.extend(std::iter::repeat_n(value, len));
            } else {
                let (packed, rest) = bytes.split_at(len * usize::from(bits));
                bytes = rest;
                for index in 0..len * 8 {
                    let bit = |at: usize| u32::from(packed[at / 8] >> (at % 8) & 1);
                    let start = index * usize::from(bits);
                    numbers.push((0..usize::from(bits)).map(|n| bit(start + n) << n).sum());
                }
            }
        }
        assert!(bytes.is_empty() && numbers.len() < count + 8);
        numbers.truncate(count);
        numbers
    }

    proptest! {
        #[test]
        fn runs_and_packed_bits_say_what_was_pushed(
            bits in 1u8..=21,
            pushed in prop::collection::vec((any::<u32>(), prop_oneof![0usize..4, 0usize..40, 400usize..1_200]), 0..60),
        ) {
            let mut runs = Runs::default();
            let mut plain = Vec::new();
            for (number, len) in pushed {
                let number = number & ((1 << bits) - 1);
                runs.push(number, len);
                plain.extend(std::iter::repeat_n(number, len));
            }
            let mut bytes = Vec::new();
            runs.encode(bits, &mut bytes);
            prop_assert_eq!(runs.len(), plain.len());
            prop_assert_eq!(decoded(&bytes, bits, plain.len()), plain);
        }
    }

    #[test]
    fn levels_tell_an_empty_row_from_one_with_entries() {
        let mut levels = Levels::default();
        [2, 0, 3].into_iter().for_each(|entries| levels.push(entries));
        let mut bytes = Vec::new();
        levels.encode(&mut bytes);
        assert_eq!(levels.len(), 6);
        // One group of eight bits each: 0 1 0 0 1 1 and 1 1 0 1 1 1, the lowest first.
        assert_eq!(bytes, [2, 0, 0, 0, 3, 0b11_0010, 2, 0, 0, 0, 3, 0b11_1011]);
    }
}
