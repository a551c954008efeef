//! The connections: each way in order and whole as long as it lasts, as TCP and TLS give it; and what ends that.
//!
//! A cut loses the rest of what is under way. Either end may never hear of it, and what had arrived is still read, so
//! that an old session's blocks are judged when the next session has long begun.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::rounds::Dice;

/// One message of the WebSocket.
#[derive(Debug, Clone)]
pub enum Message {
    /// An event.
    Text(String),
    /// A frame.
    Frame(Bytes),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// The connection is over.
    Over,
}

/// One way through a connection.
#[derive(Debug, Default)]
pub struct Way {
    /// What is under way, in order.
    pub messages: VecDeque<Message>,
    /// Nothing arrives before this.
    pub stalled_until_ms: u64,
    /// Whether what is written goes anywhere.
    cut: bool,
    /// Whether the end that reads has gone.
    deaf: bool,
}

impl Way {
    /// Sends.
    pub fn push(&mut self, message: Message) {
        if !self.cut && !self.deaf {
            self.messages.push_back(message);
        }
    }

    /// Whether something can be read.
    #[must_use]
    pub fn has_arrived(&self, now_ms: u64) -> bool {
        !self.messages.is_empty() && now_ms >= self.stalled_until_ms
    }

    /// The end that reads has gone.
    pub fn go_deaf(&mut self) {
        self.deaf = true;
        self.messages.clear();
    }

    fn cut(&mut self, dice: &mut Dice, told: bool) {
        let kept = dice.below(self.messages.len() as u64 + 1);
        self.messages.truncate(usize::try_from(kept).unwrap_or(0));
        if told {
            self.push(Message::Over);
        }
        self.cut = true;
    }
}

/// One connection.
#[derive(Debug, Default)]
pub struct Connection {
    /// Whose.
    pub satellite: usize,
    /// To the relay.
    pub up: Way,
    /// To the satellite.
    pub down: Way,
}

/// All connections by their numbers.
#[derive(Debug, Default)]
pub struct Network {
    /// Those of which an end is left.
    pub connections: BTreeMap<u64, Connection>,
    opened: u64,
    /// None can be made before this.
    pub down_until_ms: u64,
}

impl Network {
    /// A new connection of a satellite.
    pub fn open(&mut self, satellite: usize) -> u64 {
        self.opened += 1;
        self.connections.insert(self.opened, Connection { satellite, ..Connection::default() });
        self.opened
    }

    /// Cuts a connection; by `silent`, one end or both are not told.
    pub fn cut(&mut self, number: u64, dice: &mut Dice, silent: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let untold = if silent { 1 + dice.below(3) } else { 0 };
        connection.up.cut(dice, untold & 1 == 0);
        connection.down.cut(dice, untold & 2 == 0);
    }

    /// The satellite's end is closed; its last words may still arrive.
    pub fn close_satellite_end(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.up.push(Message::Over);
            connection.up.cut = true;
            connection.down.go_deaf();
        }
        self.forget(number);
    }

    /// The relay's end is closed; its last words may still arrive.
    pub fn close_relay_end(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.down.push(Message::Over);
            connection.down.cut = true;
            connection.up.go_deaf();
        }
        self.forget(number);
    }

    fn forget(&mut self, number: u64) {
        if self.connections.get(&number).is_some_and(|connection| connection.up.deaf && connection.down.deaf) {
            self.connections.remove(&number);
        }
    }
}
