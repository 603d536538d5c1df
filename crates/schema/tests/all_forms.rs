//! Code generated for every form of the language: it compiles, reads input with QEMU's checks, and
//! its values have the right form on the wire.

#![allow(missing_docs, non_snake_case, dead_code, clippy::enum_variant_names)]
#![allow(clippy::large_enum_variant, unreachable_pub, unused_qualifications)]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use schema::{Command, CommandSpec, QmpError, client, input};
use serde_json::{Map, Value, json};

include!(concat!(env!("OUT_DIR"), "/all_forms.rs"));

/// Returns its arguments.
struct Echo;

impl Commands for Echo {
    async fn numbers(&self, arg: commands::Numbers) -> Result<Vec<i64>, QmpError> {
        Ok(vec![arg.0.PC, arg.0.pc, arg.0.i8.into(), arg.0.u8.into()])
    }
    async fn draw(&self, arg: commands::Draw) -> Result<Drawing, QmpError> {
        Ok(arg.0)
    }
    async fn bare(&self, arg: commands::Bare) -> Result<Bare, QmpError> {
        Ok(arg.bare)
    }
    async fn choose(&self, arg: commands::Choose) -> Result<Choice, QmpError> {
        Ok(arg.choice)
    }
    async fn tree(&self, arg: commands::Tree) -> Result<Box<Tree>, QmpError> {
        Ok(arg.tree)
    }
    async fn shape(&self, arg: commands::Shape) -> Result<Shape, QmpError> {
        Ok(arg.shape)
    }
    async fn raw(&self, arguments: Map<String, Value>) -> Result<Value, QmpError> {
        Ok(Value::Object(arguments))
    }
    async fn hidden(&self, arg: commands::Hidden) -> Result<Hidden, QmpError> {
        Ok(arg.0)
    }
    async fn silent(&self) -> Result<(), QmpError> {
        Err(QmpError::device_not_active("No balloon device has been activated"))
    }
}

#[test]
fn optional_members_that_are_null_are_there() {
    let everything = json!({"PC": 1, "pc": 1, "type": "t", "i8": 1, "u8": 1, "fn": true});
    let absent: Everything = serde_json::from_value(everything.clone()).unwrap();
    assert_eq!(absent.null, None);
    let mut with_null = everything;
    with_null["null"] = Value::Null;
    let present: Everything = serde_json::from_value(with_null.clone()).unwrap();
    assert_eq!(present.null, Some(()));
    assert_eq!(serde_json::to_value(present).unwrap(), with_null);
}

/// The handlers here never wait.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a handler waits"),
    }
}

fn run(name: &str, arguments: Value) -> Result<Value, String> {
    let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
    ready(dispatch(&Echo, name, arguments)).map_err(|e| e.desc)
}

fn refused(name: &str, arguments: Value) -> String {
    run(name, arguments).expect_err("the arguments are wrong")
}

#[test]
fn values_keep_their_form() {
    let tree = json!({
        "value": {"any": []},
        "left": {"value": 1, "children": []},
        "children": [{"value": null, "children": []}]
    });
    for (name, arguments, result) in [
        ("draw", json!({"x": 1, "shape": "circle", "radius": 0.5}), None),
        ("draw", json!({"x": 1, "y": 2, "shape": "square", "label": "s", "side": 7}), None),
        ("draw", json!({"x": 1, "shape": "none"}), None),
        ("draw", json!({"x": 1, "shape": "3d-body"}), None),
        ("bare", json!({"bare": {"kind": "none"}}), Some(json!({"kind": "none"}))),
        (
            "bare",
            json!({"bare": {"kind": "circle", "radius": 1.0}}),
            Some(json!({"kind": "circle", "radius": 1.0})),
        ),
        ("choose", json!({"choice": true}), Some(json!(true))),
        ("choose", json!({"choice": 5}), Some(json!(5))),
        ("choose", json!({"choice": [1, 2], "choices": [null, "none"]}), Some(json!([1, 2]))),
        ("choose", json!({"choice": null}), Some(Value::Null)),
        ("choose", json!({"choice": "square"}), Some(json!("square"))),
        ("choose", json!({"choice": {"radius": 1.0}}), Some(json!({"radius": 1.0}))),
        ("tree", json!({ "tree": tree }), Some(tree)),
        ("raw", json!({"known": "unchecked", "more": 1}), None),
        ("hidden", json!({"b": 1}), None),
        (
            "numbers",
            json!({
                "PC": -1, "pc": 1, "type": "t", "i8": -128, "u8": 255, "u64": u64::MAX,
                "null": null, "fn": true
            }),
            Some(json!([-1, 1, -128, 255])),
        ),
    ] {
        let expected = result.unwrap_or_else(|| arguments.clone());
        assert_eq!(run(name, arguments.clone()), Ok(expected), "{name} {arguments}");
    }
}

#[test]
fn the_client_sends_and_reads_the_same() {
    let draw = commands::Draw(Drawing {
        x: 1,
        y: None,
        branch: DrawingBranch::Square(Square { label: None, side: 3 }),
    });
    assert_eq!(<commands::Draw as Command>::NAME, "draw");
    let wire = json!({"x": 1, "shape": "square", "side": 3});
    assert_eq!(serde_json::to_value(&draw).unwrap(), wire);
    let back: <commands::Draw as Command>::Ok = serde_json::from_value(wire).unwrap();
    assert_eq!(back, draw.0);
    assert_eq!(back.branch.shape(), Shape::Square);
    // Members that a newer server adds are ignored.
    let circle: Circle = serde_json::from_value(json!({"radius": 2.0, "new": 1})).unwrap();
    assert_eq!(circle.radius, 2.0);
    let nothing: client::Empty = serde_json::from_value(json!({"new": 1})).unwrap();
    assert_eq!(nothing, client::Empty {});
}

fn wrong(member: &str, expected: &str) -> String {
    format!("Invalid parameter type for '{member}', expected: {expected}")
}

/// The texts are QEMU 7.2's, as observed.
#[test]
fn wrong_scalars_are_told_in_qemus_words() {
    let everything = |member: &str, value: Value| {
        let mut all = json!({"PC": 1, "pc": 1, "type": "t", "i8": 1, "u8": 1, "fn": true});
        all[member] = value;
        refused("numbers", all)
    };
    assert_eq!(everything("pc", json!(1.5)), wrong("pc", "integer"));
    assert_eq!(everything("pc", json!(1_u64 << 63)), wrong("pc", "integer"));
    assert_eq!(everything("pc", json!("1")), wrong("pc", "integer"));
    assert_eq!(everything("type", json!(1)), wrong("type", "string"));
    assert_eq!(everything("fn", json!(0)), wrong("fn", "boolean"));
    assert_eq!(everything("null", json!(0)), wrong("null", "null"));
    assert_eq!(everything("i8", json!(128)), "Parameter 'i8' expects int8_t");
    assert_eq!(everything("i16", json!(40000)), "Parameter 'i16' expects int16_t");
    assert_eq!(everything("u8", json!(256)), "Parameter 'u8' expects uint8_t");
    assert_eq!(everything("u32", json!(-1)), "Parameter 'u32' expects uint32_t");
    assert_eq!(everything("other", json!(1)), "Parameter 'other' is unexpected");
}

#[test]
fn wrong_objects_are_told_in_qemus_words() {
    let draw = |arguments| refused("draw", arguments);
    assert_eq!(draw(json!({})), "Parameter 'x' is missing");
    assert_eq!(draw(json!({"x": 1})), "Parameter 'shape' is missing");
    assert_eq!(draw(json!({"x": 1, "shape": "circle"})), "Parameter 'radius' is missing");
    assert_eq!(draw(json!({"x": 1, "shape": 1})), wrong("shape", "string"));
    assert_eq!(
        draw(json!({"x": 1, "shape": "oval"})),
        "Parameter 'shape' does not accept value 'oval'"
    );
    assert_eq!(
        draw(json!({"x": 1, "shape": "none", "radius": 1})),
        "Parameter 'radius' is unexpected"
    );
    assert_eq!(draw(json!({"x": 1, "shape": "circle", "radius": "1"})), wrong("radius", "number"));
    let bare = |value| refused("bare", json!({ "bare": value }));
    assert_eq!(bare(json!([])), wrong("bare", "object"));
    assert_eq!(bare(json!({"kind": "circle"})), "Parameter 'bare.radius' is missing");
    assert_eq!(bare(json!({"kind": "oval"})), "Parameter 'kind' does not accept value 'oval'");
    let tree = |child| refused("tree", json!({"tree": {"value": 1, "children": [child]}}));
    assert_eq!(
        tree(json!({"value": 1, "children": {}})),
        wrong("tree.children[0].children", "array")
    );
    assert_eq!(
        tree(json!({"value": 1, "children": [], "x": 1})),
        "Parameter 'tree.children[0].x' is unexpected"
    );
    assert_eq!(tree(json!(1)), wrong("tree.children[0]", "object"));
    assert_eq!(refused("choose", json!({"choice": 1.5})), wrong("choice", "integer"));
    assert_eq!(
        refused("choose", json!({"choice": true, "choices": ["oval"]})),
        "Parameter 'null' does not accept value 'oval'"
    );
    assert_eq!(refused("silent", json!({"b": 1, "a": 1})), "Parameter 'b' is unexpected");
    assert_eq!(refused("hidden", json!({"a": 1, "b": 1})), "Parameter 'a' is unexpected");
}

#[test]
fn only_commands_with_handlers_are_dispatched() {
    for name in ["absent", "session", "nope", ""] {
        let error = ready(dispatch(&Echo, name, Map::new())).expect_err("not served");
        assert_eq!(error.class, schema::ErrorClass::CommandNotFound);
        assert_eq!(error.desc, format!("The command {name} has not been found"));
    }
    let error = ready(dispatch(&Echo, "silent", Map::new())).expect_err("its handler fails");
    assert_eq!(
        serde_json::to_value(&error).unwrap(),
        json!({"class": "DeviceNotActive", "desc": "No balloon device has been activated"})
    );
}

#[test]
fn commands_are_listed_with_their_flags() {
    let names: Vec<&str> = COMMANDS.iter().map(|c| c.name).collect();
    let all = ["numbers", "draw", "bare", "choose", "tree", "shape", "raw", "hidden", "session"];
    assert_eq!(names[..9], all);
    assert_eq!(names[9..], ["silent"]);
    let flags = |name: &str| {
        let c = COMMANDS.iter().find(|c| c.name == name).unwrap();
        (c.allow_oob, c.allow_preconfig, c.success_response)
    };
    assert_eq!(flags("session"), (true, true, true));
    assert_eq!(flags("silent"), (false, false, false));
}

#[test]
fn events_carry_their_data() {
    assert_eq!(Event::NAMES, ["NOTHING", "DRAWN", "MOVED"]);
    assert_eq!((Event::Nothing.name(), Event::Nothing.data()), ("NOTHING", None));
    let moved = Event::Moved(MovedEventData { x: 1, y: None });
    assert_eq!(moved.data(), Some(json!({"x": 1})));
    assert_eq!(Event::parse("MOVED", json!({"x": 1})).unwrap(), Some(moved));
    assert_eq!(Event::parse("UNKNOWN", Value::Null).unwrap(), None);
    assert!(Event::parse("MOVED", json!({"y": 1})).is_err());
}

#[test]
fn enumerations_know_their_names() {
    assert_eq!(Shape::ALL.len(), 4);
    assert_eq!(Shape::N3dBody.as_str(), "3d-body");
    assert_eq!(Shape::N3dBody.to_string(), "3d-body");
    assert_eq!(serde_json::to_value(Shape::N3dBody).unwrap(), json!("3d-body"));
}

#[test]
fn unknown_error_classes_are_generic() {
    let error: QmpError = serde_json::from_value(json!({"class": "New", "desc": "d"})).unwrap();
    assert_eq!(error, QmpError::generic("d"));
}
