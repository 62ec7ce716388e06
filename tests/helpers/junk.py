"""Values that a foreign file may hold where another was meant, for hypothesis."""

from hypothesis import strategies as st

# Text as files from elsewhere may have it: line breaks, escapes, marks of direction, half a surrogate pair.
HOSTILE = st.text(st.sampled_from("a0 \n\r\x1b\x85\u202e\u2028\ud800'{}%"), min_size=1, max_size=5)
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=5),
    HOSTILE,
    st.lists(st.integers(-2, 99), max_size=4),
    st.lists(HOSTILE, min_size=3, max_size=3),
    st.dictionaries(HOSTILE, HOSTILE, max_size=2),
    st.dictionaries(st.sampled_from(["height", "width", "shortest_edge", "0"]), st.integers(-2, 99), max_size=2),
)
