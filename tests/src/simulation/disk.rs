//! A satellite's disk: what the buffer's store promises, and no more.
//!
//! Batches are there whole and in order. Until a flush they may be lost, each with all that came after it: to the end of
//! the program as far as they had not left its memory, to a power cut as far as they had not left the machine's.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::rc::Rc;

use satellite_agent::buffer::stock::{Changes, Mark, StoreError, Values};

use super::faults::happens;
use crate::rounds::Dice;

type Tree = BTreeMap<Vec<u8>, Rc<[u8]>>;
type Batch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// The disk; it stays when programs end.
#[derive(Debug, Clone)]
pub struct Disk(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    dice: Dice,
    durable: Tree,
    unflushed: Vec<Batch>,
    /// As programs read it.
    now: Tree,
    mark: Option<Mark>,
    mark_durable: Option<Mark>,
    /// Of the writes, one in so many fails.
    fails: u64,
    /// The write after so many more fails.
    fails_in: Option<u64>,
    /// Whether a flush is none.
    lies: bool,
}

/// What a disk held at some time.
#[derive(Debug, Clone)]
pub struct Copy {
    tree: Tree,
    mark: Option<Mark>,
}

/// An open store on the disk.
#[derive(Debug)]
pub struct Store(Rc<RefCell<State>>);

impl Disk {
    /// An empty one; `lies` where its flushes shall do nothing.
    #[must_use]
    pub fn new(dice: Dice, lies: bool) -> Self {
        Self(Rc::new(RefCell::new(State {
            dice,
            durable: Tree::new(),
            unflushed: Vec::new(),
            now: Tree::new(),
            mark: None,
            mark_durable: None,
            fails: 0,
            fails_in: None,
            lies,
        })))
    }

    /// Of the writes, one in so many fails from now on.
    pub fn set_fails(&self, one_in: u64) {
        self.0.borrow_mut().fails = one_in;
    }

    /// The write after so many more fails.
    pub fn fail_in(&self, writes: Option<u64>) {
        self.0.borrow_mut().fails_in = writes;
    }

    /// Opens the store, whoever had it open before: what that had not written is gone.
    #[must_use]
    pub fn open(&self) -> Store {
        self.0.borrow_mut().forget_unwritten();
        Store(Rc::clone(&self.0))
    }

    /// The mark beside the store.
    #[must_use]
    pub fn mark(&self) -> Mark {
        self.0.borrow().mark.clone().unwrap_or_default()
    }

    /// Writes the mark, which nobody flushes.
    pub fn set_mark(&self, mark: Option<Mark>) {
        if mark.is_some() {
            self.0.borrow_mut().mark = mark;
        }
    }

    /// The power goes.
    pub fn cut_power(&self) {
        let mut state = self.0.borrow_mut();
        state.forget_unwritten();
        state.durable = state.now.clone();
        state.unflushed.clear();
        if state.dice.one_in(2) {
            state.mark = state.mark_durable.clone();
        }
        state.mark_durable = state.mark.clone();
    }

    /// A copy of what is durable.
    #[must_use]
    pub fn copy(&self) -> Copy {
        let state = self.0.borrow();
        Copy { tree: state.durable.clone(), mark: state.mark_durable.clone() }
    }

    /// Puts the disk back to a copy.
    pub fn restore(&self, copy: Copy) {
        let mut state = self.0.borrow_mut();
        state.unflushed.clear();
        (state.durable, state.now) = (copy.tree.clone(), copy.tree);
        (state.mark_durable, state.mark) = (copy.mark.clone(), copy.mark);
    }
}

impl State {
    fn forget_unwritten(&mut self) {
        let kept = self.dice.below(self.unflushed.len() as u64 + 1);
        if kept < self.unflushed.len() as u64 {
            self.unflushed.truncate(usize::try_from(kept).unwrap_or(0));
            self.now = self.durable.clone();
            for batch in &self.unflushed {
                write(&mut self.now, batch);
            }
        }
    }

    /// Whether this write fails.
    fn fails(&mut self) -> bool {
        if let Some(writes) = self.fails_in {
            self.fails_in = writes.checked_sub(1);
            return writes == 0;
        }
        let one_in = self.fails;
        happens(&mut self.dice, one_in)
    }

    fn flush(&mut self, batches: usize) {
        for batch in self.unflushed.drain(..batches) {
            write(&mut self.durable, &batch);
        }
        self.mark_durable = self.mark.clone();
    }
}

fn write(tree: &mut Tree, batch: &Batch) {
    for (key, value) in batch {
        match value {
            Some(value) => drop(tree.insert(key.clone(), value.as_slice().into())),
            None => drop(tree.remove(key)),
        }
    }
}

fn error() -> StoreError {
    StoreError::Io(io::Error::other("the disk failed"))
}

impl Values for Store {
    type Bytes = Rc<[u8]>;

    fn get(&self, key: &[u8]) -> Result<Option<Rc<[u8]>>, StoreError> {
        Ok(self.0.borrow().now.get(key).cloned())
    }

    fn scan(&self, from: Vec<u8>, below: Vec<u8>) -> impl Iterator<Item = Result<(Rc<[u8]>, Rc<[u8]>), StoreError>> {
        let mut next = Bound::Included(from);
        std::iter::from_fn(move || {
            let state = self.0.borrow();
            let (key, value) = state.now.range((next.clone(), Bound::Excluded(below.clone()))).next()?;
            next = Bound::Excluded(key.clone());
            Some(Ok((key.as_slice().into(), Rc::clone(value))))
        })
    }

    fn last(&self, from: &[u8], below: &[u8]) -> Option<Result<Rc<[u8]>, StoreError>> {
        let state = self.0.borrow();
        state.now.range(from.to_vec()..below.to_vec()).next_back().map(|(_, value)| Ok(Rc::clone(value)))
    }

    fn apply(&self, changes: Changes) -> Result<(), StoreError> {
        let mut state = self.0.borrow_mut();
        let fails = state.fails();
        if !fails || state.dice.one_in(2) {
            let batch = changes.into_all();
            write(&mut state.now, &batch);
            state.unflushed.push(batch);
        }
        if fails { Err(error()) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), StoreError> {
        let mut state = self.0.borrow_mut();
        if state.lies {
            return Ok(());
        }
        let all = state.unflushed.len();
        if !state.fails() {
            state.flush(all);
            return Ok(());
        }
        let some = state.dice.below(all as u64 + 1);
        state.flush(usize::try_from(some).unwrap_or(0));
        Err(error())
    }

    fn flush_first(&mut self) -> Result<(), StoreError> {
        self.flush()
    }
}
