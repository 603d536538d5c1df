//! What a request must look like, before anyone asks what it means.

use serde_json::{Map, Value};

use crate::QmpError;
use crate::json::JsonError;

/// A complete value from the client, or the error that stands for it.
#[derive(Debug)]
pub(super) struct Request {
    /// Echoed in the answer, of whatever type it is.
    pub(super) id: Option<Value>,
    input: Result<Value, JsonError>,
}

/// What a well-formed request asks for.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) command: String,
    pub(super) arguments: Map<String, Value>,
}

impl Request {
    pub(super) fn new(mut input: Result<Value, JsonError>) -> Request {
        let id = match &mut input {
            Ok(Value::Object(members)) => members.shift_remove("id"),
            _ => None,
        };
        Request { id, input }
    }

    /// Whether it is to overtake the requests that wait.
    pub(super) fn is_oob(&self) -> bool {
        match &self.input {
            Ok(Value::Object(members)) => {
                members.contains_key("exec-oob") && !members.contains_key("execute")
            }
            _ => false,
        }
    }

    /// Checks the request's structure. Without `oob` there is no member `exec-oob`.
    pub(super) fn into_call(self, oob: bool) -> Result<Call, QmpError> {
        let input = self.input.map_err(|error| QmpError::generic(error.to_string()))?;
        let Value::Object(members) = input else {
            return Err(QmpError::generic("QMP input must be a JSON object"));
        };
        let mut command: Option<String> = None;
        let mut arguments = Map::new();
        for (name, value) in members {
            let name = match name.as_str() {
                "execute" => "execute",
                "exec-oob" if oob => "exec-oob",
                "arguments" => {
                    let Value::Object(members) = value else {
                        let text = "QMP input member 'arguments' must be an object";
                        return Err(QmpError::generic(text));
                    };
                    arguments = members;
                    continue;
                }
                other => {
                    let text = format!("QMP input member '{other}' is unexpected");
                    return Err(QmpError::generic(text));
                }
            };
            let Value::String(text) = value else {
                return Err(QmpError::generic(format!(
                    "QMP input member '{name}' must be a string"
                )));
            };
            if command.replace(text).is_some() {
                let text = "QMP input member 'execute' clashes with 'exec-oob'";
                return Err(QmpError::generic(text));
            }
        }
        match command {
            Some(command) => Ok(Call { command, arguments }),
            None => Err(QmpError::generic("QMP input lacks member 'execute'")),
        }
    }
}

/// The object that answers a request.
pub(super) fn reply(id: Option<Value>, outcome: Result<Value, QmpError>) -> Value {
    let mut reply = Map::new();
    match outcome {
        Ok(value) => {
            reply.insert("return".to_owned(), value);
            if let Some(id) = id {
                reply.insert("id".to_owned(), id);
            }
        }
        Err(error) => {
            if let Some(id) = id {
                reply.insert("id".to_owned(), id);
            }
            let mut object = Map::new();
            object.insert("class".to_owned(), error.class.as_str().into());
            object.insert("desc".to_owned(), error.desc.into());
            reply.insert("error".to_owned(), Value::Object(object));
        }
    }
    Value::Object(reply)
}
