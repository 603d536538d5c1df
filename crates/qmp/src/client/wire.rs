//! What the async and the blocking client share: requests out, messages in, without any I/O.

use std::collections::VecDeque;

use schema::{Command, ErrorClass, QmpError};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::ClientError;
use crate::json::{Parser, write_compact};

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Greeting {
    /// The version object: `qemu` with `major`, `minor` and `micro`, and `package`.
    pub version: Value,
    /// The capabilities offered.
    pub capabilities: Vec<String>,
}

/// An event from the server.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedEvent {
    /// Its name.
    pub name: String,
    /// Its data, null if it has none.
    pub data: Value,
    /// Seconds since 1970, and microseconds.
    pub timestamp: (i64, i64),
}

impl ReceivedEvent {
    /// The event as the schema knows it; `None` if it doesn't.
    pub fn typed(&self) -> Result<Option<schema::Event>, serde_json::Error> {
        schema::Event::parse(&self.name, self.data.clone())
    }
}

#[derive(Debug)]
pub(super) enum Message {
    Greeting(Greeting),
    Reply { id: Option<u64>, outcome: Result<Value, ClientError> },
    Event(ReceivedEvent),
}

impl Message {
    /// The outcome of request `request` if this is its reply; an event goes to `events`, a reply to
    /// another request (given up by its caller) nowhere.
    pub(super) fn answer_to(
        self,
        request: u64,
        events: &mut VecDeque<ReceivedEvent>,
    ) -> Option<Result<Value, ClientError>> {
        match self {
            Message::Reply { id: Some(id), outcome } => (id == request).then_some(outcome),
            // An error without id: the server didn't understand what it got.
            Message::Reply { id: None, outcome } => outcome.is_err().then_some(outcome),
            Message::Event(event) => {
                events.push_back(event);
                None
            }
            Message::Greeting(_) => {
                Some(Err(ClientError::Protocol("a second greeting".to_owned())))
            }
        }
    }
}

const READ: usize = 16 << 10;

/// The state of a conversation.
pub(super) struct Wire {
    parser: Parser,
    buffer: Box<[u8]>,
    unparsed: std::ops::Range<usize>,
    next_id: u64,
    greeting: Greeting,
}

impl Wire {
    pub(super) fn new() -> Wire {
        Wire {
            parser: Parser::new(),
            buffer: vec![0; READ].into_boxed_slice(),
            unparsed: 0..0,
            next_id: 0,
            greeting: Greeting::default(),
        }
    }

    pub(super) fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Takes the greeting and makes the request that answers it.
    pub(super) fn greeted(&mut self, first: Message, oob: bool) -> Result<Vec<u8>, ClientError> {
        let Message::Greeting(greeting) = first else {
            return Err(ClientError::Protocol("no greeting".to_owned()));
        };
        let offered = greeting.capabilities.iter().any(|capability| capability == "oob");
        self.greeting = greeting;
        let mut arguments = Map::new();
        if oob && offered {
            arguments.insert("enable".to_owned(), json!(["oob"]));
        }
        Ok(self.request("execute", "qmp_capabilities", arguments).1)
    }

    /// A request as bytes, and its id.
    pub(super) fn request(
        &mut self,
        verb: &str,
        command: &str,
        arguments: Map<String, Value>,
    ) -> (u64, Vec<u8>) {
        self.next_id += 1;
        let mut request = Map::new();
        request.insert(verb.to_owned(), command.into());
        if !arguments.is_empty() {
            request.insert("arguments".to_owned(), Value::Object(arguments));
        }
        request.insert("id".to_owned(), self.next_id.into());
        let mut bytes = Vec::new();
        write_compact(&Value::Object(request), &mut bytes);
        bytes.extend_from_slice(b"\r\n");
        (self.next_id, bytes)
    }

    /// Where the next bytes from the server go, once [`Wire::next`] has none left.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// So many bytes came; none is the end.
    pub(super) fn filled(&mut self, count: usize) -> Result<(), ClientError> {
        self.unparsed = 0..count;
        if count == 0 { Err(ClientError::Closed) } else { Ok(()) }
    }

    /// The next complete message in what has been read.
    pub(super) fn next(&mut self) -> Result<Option<Message>, ClientError> {
        let mut rest = &self.buffer[self.unparsed.clone()];
        let parsed = self.parser.next(&mut rest);
        self.unparsed.start = self.unparsed.end - rest.len();
        match parsed {
            None => Ok(None),
            Some(Ok(Value::Object(members))) => understand(members).map(Some),
            Some(Ok(_)) => Err(ClientError::Protocol("a message is not an object".to_owned())),
            Some(Err(error)) => Err(ClientError::Protocol(error.to_string())),
        }
    }
}

fn understand(mut members: Map<String, Value>) -> Result<Message, ClientError> {
    if let Some(greeting) = members.get_mut("QMP") {
        let capabilities = greeting["capabilities"].as_array();
        let names = capabilities.into_iter().flatten().filter_map(Value::as_str);
        let capabilities = names.map(str::to_owned).collect();
        return Ok(Message::Greeting(Greeting {
            version: greeting["version"].take(),
            capabilities,
        }));
    }
    let id = members.get("id").and_then(Value::as_u64);
    if let Some(value) = members.shift_remove("return") {
        return Ok(Message::Reply { id, outcome: Ok(value) });
    }
    if let Some(error) = members.get("error") {
        let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
        let class: ErrorClass =
            serde_json::from_value(error["class"].clone()).unwrap_or(ErrorClass::GenericError);
        let refused = ClientError::Refused {
            class: text("class"),
            error: QmpError::new(class, text("desc")),
        };
        return Ok(Message::Reply { id, outcome: Err(refused) });
    }
    let Some(Value::String(name)) = members.shift_remove("event") else {
        return Err(ClientError::Protocol("neither greeting, reply nor event".to_owned()));
    };
    let data = members.shift_remove("data").unwrap_or_default();
    let stamp = |part: &str| members.get("timestamp").and_then(|t| t[part].as_i64()).unwrap_or(-1);
    let timestamp = (stamp("seconds"), stamp("microseconds"));
    Ok(Message::Event(ReceivedEvent { name, data, timestamp }))
}

/// A command's arguments as the wire has them.
pub(super) fn arguments<C: Command>(command: &C) -> Result<Map<String, Value>, ClientError> {
    let refuse = |source| ClientError::Answer { command: C::NAME.to_owned(), source };
    match serde_json::to_value(command).map_err(refuse)? {
        Value::Object(arguments) => Ok(arguments),
        _ => Ok(Map::new()),
    }
}

/// A command's return value as the schema has it.
pub(super) fn answer<C: Command>(value: Value) -> Result<C::Ok, ClientError>
where
    C::Ok: DeserializeOwned,
{
    let refuse = |source| ClientError::Answer { command: C::NAME.to_owned(), source };
    serde_json::from_value(value).map_err(refuse)
}
