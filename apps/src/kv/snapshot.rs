//! The bytes of a snapshot of the key-value service, written and read as a stream.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `HCKVSNAP` |
//! | 1 | [`VERSION`] |
//! | … | the entries, keys strictly ascending: {1, key length u32, value length u32, key, value} |
//! | 1 | 0: the end of the entries |
//! | 8 | the number of entries, u64 |
//! | 4 | CRC-32 of everything before |
//!
//! Integers are little-endian.

use std::io::{self, BufReader, BufWriter, Read, Write};

use imbl::OrdMap;

use super::{KEY_BYTES_MAX, VALUE_BYTES_MAX, blob::Blob};

const MAGIC: &[u8; 8] = b"HCKVSNAP";
const VERSION: u8 = 1;
const ENTRY: u8 = 1;
const END: u8 = 0;

/// Writes the map.
pub(super) fn write(map: &OrdMap<Blob, Blob>, output: &mut dyn Write) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(64 << 10, output);
    let mut hasher = crc32fast::Hasher::new();
    let mut put = |bytes: &[u8]| {
        hasher.update(bytes);
        output.write_all(bytes)
    };
    put(MAGIC)?;
    put(&[VERSION])?;
    for (key, value) in map {
        let (key, value) = (key.as_ref(), value.as_ref());
        let mut head = [ENTRY; 9];
        head[1..5].copy_from_slice(&(key.len() as u32).to_le_bytes());
        head[5..9].copy_from_slice(&(value.len() as u32).to_le_bytes());
        put(&head)?;
        put(key)?;
        put(value)?;
    }
    put(&[END])?;
    put(&(map.len() as u64).to_le_bytes())?;
    output.write_all(&hasher.finalize().to_le_bytes())?;
    output.flush()
}

/// Reads what [`write`] wrote, and nothing else, to the end.
pub(super) fn read(input: &mut dyn Read) -> io::Result<OrdMap<Blob, Blob>> {
    let mut input = Checked {
        input: BufReader::with_capacity(64 << 10, input),
        hasher: crc32fast::Hasher::new(),
    };
    if input.array::<8>()? != *MAGIC {
        return Err(invalid("is not a snapshot of the kv service"));
    }
    let [version] = input.array()?;
    if version != VERSION {
        return Err(invalid("has a format version that this build does not read"));
    }
    let mut map = OrdMap::new();
    let mut last: Option<Blob> = None;
    loop {
        match input.array()? {
            [ENTRY] => {}
            [END] => break,
            _ => return Err(invalid("is damaged: a byte that begins no entry")),
        }
        let key_size = u32::from_le_bytes(input.array()?) as usize;
        let value_size = u32::from_le_bytes(input.array()?) as usize;
        if key_size > KEY_BYTES_MAX || value_size > VALUE_BYTES_MAX {
            return Err(invalid("is damaged: an entry beyond the limits"));
        }
        let key = input.blob(key_size)?;
        if last.as_ref().is_some_and(|last| *last >= key) {
            return Err(invalid("is damaged: keys out of order"));
        }
        last = Some(key.clone());
        map.insert(key, input.blob(value_size)?);
    }
    if u64::from_le_bytes(input.array()?) != map.len() as u64 {
        return Err(invalid("is damaged: the number of entries is wrong"));
    }
    let expected = input.hasher.clone().finalize();
    if u32::from_le_bytes(input.array()?) != expected {
        return Err(invalid("is damaged: the checksum is wrong"));
    }
    if input.input.read(&mut [0])? != 0 {
        return Err(invalid("is damaged: bytes after the end"));
    }
    Ok(map)
}

/// A reader that computes the checksum of what it reads.
struct Checked<R> {
    input: BufReader<R>,
    hasher: crc32fast::Hasher,
}

impl<R: Read> Checked<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes)?;
        self.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Reads `size` bytes; the buffer grows with what arrives, not with what `size` claims.
    fn blob(&mut self, size: usize) -> io::Result<Blob> {
        const TRUSTED: usize = 4096;
        let mut bytes = Vec::with_capacity(size.min(TRUSTED));
        let read = (&mut self.input).take(size as u64).read_to_end(&mut bytes)?;
        if read < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&bytes);
        Ok(Blob::from(&bytes[..]))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> OrdMap<Blob, Blob> {
        let mut map = OrdMap::new();
        for n in 0..300 {
            let value = vec![n as u8; n % 50];
            map.insert(Blob::from(format!("key{n:04}").as_bytes()), Blob::from(&value[..]));
        }
        map.insert(Blob::from(&[][..]), Blob::from(&vec![7; 100_000][..]));
        map
    }

    fn written(map: &OrdMap<Blob, Blob>) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(map, &mut bytes).expect("writing to a vector");
        bytes
    }

    #[test]
    fn reads_back() {
        for map in [sample(), OrdMap::new()] {
            assert_eq!(read(&mut written(&map).as_slice()).unwrap(), map);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let mut map = OrdMap::new();
        for (key, value) in [("a", "1"), ("b", ""), ("cc", "333")] {
            map.insert(Blob::from(key.as_bytes()), Blob::from(value.as_bytes()));
        }
        let good = written(&map);
        for place in 0..good.len() {
            assert!(read(&mut &good[..place]).is_err(), "cut at {place}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[place] ^= 1 << bit;
                assert!(read(&mut bad.as_slice()).is_err(), "bit {bit} of byte {place}");
            }
        }
        let mut longer = good;
        longer.push(0);
        assert!(read(&mut longer.as_slice()).is_err());
    }

    #[test]
    fn keys_out_of_order_are_refused_even_with_a_good_checksum() {
        let mut bytes = MAGIC.to_vec();
        bytes.push(VERSION);
        for key in [b'b', b'a'] {
            bytes.extend([ENTRY, 1, 0, 0, 0, 0, 0, 0, 0, key]);
        }
        bytes.push(END);
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        let error = read(&mut bytes.as_slice()).unwrap_err();
        assert!(error.to_string().contains("out of order"), "{error}");
    }
}
