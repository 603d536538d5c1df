//! Tests of the whole adapter through its ports and its window.
