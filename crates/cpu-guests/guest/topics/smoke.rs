//! smoke
use crate::kit::*;
pub fn run() {
    check("ud2", attempt!(["ud2"]), UD);
    check("cli user", user!(["cli"]), GP);
    check("nop user", user!(["nop"]), NONE);
}
