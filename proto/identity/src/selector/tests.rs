use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[test]
fn a_selector_has_a_type_without_colon_and_a_value() {
    let selector: Selector = "unix:user:a:b".parse().unwrap();
    assert_eq!((selector.kind(), selector.value()), ("unix", "user:a:b"));
    assert_eq!(selector.to_string(), "unix:user:a:b");
    assert_eq!(Selector::new("", "a"), Err(SelectorError::NoType));
    assert_eq!(Selector::new("a:b", "c"), Err(SelectorError::ColonInType));
    assert_eq!(Selector::new("a", ""), Err(SelectorError::NoValue));
    assert!(Selector::new(&"a".repeat(MAX_TYPE_BYTES + 1), "b").is_err());
    assert!(Selector::new("a", &"b".repeat(MAX_VALUE_BYTES + 1)).is_err());
    assert!("nothing".parse::<Selector>().is_err());
}

fn set(numbers: &BTreeSet<u8>) -> SelectorSet {
    numbers
        .iter()
        .map(|n| Selector::new("n", &n.to_string()).unwrap())
        .collect()
}

proptest! {
    #[test]
    fn subset_and_intersection_are_those_of_sets(
        a in proptest::collection::btree_set(0u8..12, 0..8),
        b in proptest::collection::btree_set(0u8..12, 0..8),
    ) {
        prop_assert_eq!(set(&a).is_subset(&set(&b)), a.is_subset(&b));
        prop_assert_eq!(set(&a).intersects(&set(&b)), !a.is_disjoint(&b));
        prop_assert_eq!(set(&a).len(), a.len());
    }
}
