//! A disk that forgets, at a power cut, whatever was not flushed: what a disk with a write cache may do at its worst.
//!
//! QEMU asks it by NBD (doc/proto.md of the NetworkBlockDevice project, the old handshake) over a Unix socket. What the
//! image holds stays as it is: blocks that were written live in memory, so that a machine needs no copy of the image and
//! leaves nothing behind. Deliberately absent: torn blocks, and flushes that lie.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

const BLOCK: usize = 4096;
/// Flags of the handshake: flags follow, and flush is understood.
const FLAGS: u32 = 0b101;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// QEMU asks for less.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// The disk.
#[derive(Debug)]
pub struct Disk {
    blocks: Arc<Mutex<Blocks>>,
    server: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Blocks {
    image: File,
    size: u64,
    flushed: HashMap<u64, Box<[u8]>>,
    written: HashMap<u64, Box<[u8]>>,
}

impl Disk {
    /// A disk that begins as this image.
    ///
    /// # Errors
    /// When the image can't be read.
    pub fn of(image: &Path) -> Result<Self> {
        let file = File::open(image).with_context(|| image.display().to_string())?;
        let size = file.metadata()?.len();
        let blocks = Blocks { image: file, size, flushed: HashMap::new(), written: HashMap::new() };
        Ok(Self { blocks: Arc::new(Mutex::new(blocks)), server: None })
    }

    /// Waits at this socket for the machine that has the disk next.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn serve(&mut self, socket: &Path) -> Result<()> {
        let listener = UnixListener::bind(socket).with_context(|| socket.display().to_string())?;
        let blocks = self.blocks.clone();
        self.server = Some(std::thread::spawn(move || answer(listener.accept()?.0, &blocks)));
        Ok(())
    }

    /// The machine has gone: waits for the last of what it asked. What it did not flush is forgotten.
    ///
    /// # Errors
    /// When it asked for what the disk does not know.
    pub fn cut(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            match server.join() {
                Ok(ended) => ended?,
                Err(_) => bail!("the disk's thread failed"),
            }
        }
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).written.clear();
        Ok(())
    }
}

fn answer(mut machine: UnixStream, blocks: &Mutex<Blocks>) -> Result<()> {
    let size = blocks.lock().unwrap_or_else(PoisonError::into_inner).size;
    let mut hello = Vec::with_capacity(152);
    hello.extend(b"NBDMAGIC");
    hello.extend(0x0000_4202_8186_1253_u64.to_be_bytes());
    hello.extend(size.to_be_bytes());
    hello.extend(FLAGS.to_be_bytes());
    hello.resize(152, 0);
    machine.write_all(&hello)?;
    let mut request = [0; 28];
    // The end of the stream between requests is the end of the machine.
    while machine.read_exact(&mut request).is_ok() {
        let number = |from: usize, to: usize| request[from..to].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let (kind, offset, length) = (number(6, 8), number(16, 24), usize::try_from(number(24, 28))?);
        if number(0, 4) != u64::from(REQUEST_MAGIC) || length > REQUEST_BYTES_MAX {
            bail!("this is no request for a disk: {request:?}");
        }
        let mut reply = Vec::with_capacity(16 + length);
        reply.extend(REPLY_MAGIC.to_be_bytes());
        reply.extend(0_u32.to_be_bytes());
        reply.extend(&request[8..16]);
        let mut data = vec![0; if kind == 1 { length } else { 0 }];
        if machine.read_exact(&mut data).is_err() {
            return Ok(());
        }
        let mut blocks = blocks.lock().unwrap_or_else(PoisonError::into_inner);
        match kind {
            0 => blocks.read(offset, length, &mut reply)?,
            1 => blocks.write(offset, &data)?,
            2 => return Ok(()),
            3 => blocks.flush(),
            _ => bail!("the disk does not know request {kind}"),
        }
        drop(blocks);
        if machine.write_all(&reply).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Blocks {
    fn read(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> Result<()> {
        let whole_from = out.len();
        out.resize(whole_from + length, 0);
        let out = &mut out[whole_from..];
        self.image.read_exact_at(out, offset)?;
        for (index, place) in out.chunks_mut(BLOCK).enumerate() {
            let at = offset + (index * BLOCK) as u64;
            if let Some(block) = self.written.get(&at).or_else(|| self.flushed.get(&at)) {
                place.copy_from_slice(&block[..place.len()]);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        if !offset.is_multiple_of(BLOCK as u64) || !data.len().is_multiple_of(BLOCK) {
            bail!("the disk has blocks of {BLOCK} bytes");
        }
        for (index, block) in data.chunks(BLOCK).enumerate() {
            self.written.insert(offset + (index * BLOCK) as u64, block.into());
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.flushed.extend(self.written.drain());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_forgets_what_was_not_flushed() {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().write_all(&[1; 3 * BLOCK]).unwrap();
        let mut disk = Disk::of(image.path()).unwrap();
        let first_bytes = |disk: &Disk| {
            let mut out = Vec::new();
            disk.blocks.lock().unwrap().read(0, 3 * BLOCK, &mut out).unwrap();
            [out[0], out[BLOCK], out[2 * BLOCK]]
        };
        {
            let mut blocks = disk.blocks.lock().unwrap();
            blocks.write(0, &[2; BLOCK]).unwrap();
            blocks.flush();
            blocks.write(BLOCK as u64, &[3; 2 * BLOCK]).unwrap();
            assert!(blocks.write(1, &[3; BLOCK]).is_err());
        }
        assert_eq!(first_bytes(&disk), [2, 3, 3]);
        disk.cut().unwrap();
        assert_eq!(first_bytes(&disk), [2, 1, 1]);
        assert_eq!(std::fs::read(image.path()).unwrap(), [1; 3 * BLOCK], "the image stays as it is");
    }
}
