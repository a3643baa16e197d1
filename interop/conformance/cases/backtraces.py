"""The words in front of the body; request/reply and survey have the same rules for them."""

from __future__ import annotations

from interop.conformance.case import AGREED, BOTH, REQREP, case
from interop.conformance.subjects import ANSWERING, ASKING
from interop.conformance.target import Target
from interop.conformance.wire import PipeEnded, word

TTL = 8
"""The number of words that all implementations accept by default."""
SOURCE = f"{REQREP}, 6; SP surveyor/respondent, 6"


def stack(size: int, bottom: int = 0x80000001) -> bytes:
    """Return *size* words, of which the last has its highest bit set."""
    return b"".join(word(0x11110000 + n) for n in range(size - 1)) + word(bottom)


@case(SOURCE, roles=ANSWERING, every=True)
async def backtrace_comes_back(target: Target) -> None:
    """An answer carries the backtrace of its question unchanged, from one word to eight."""
    pipe = await target.pipe()
    bodies = set()
    for size in range(1, TTL + 1):
        await pipe.send(stack(size) + b"question")
        answer = await pipe.receive(f"an answer to a question with {size} words")
        assert answer.startswith(stack(size)), f"{size} words have come back as {answer[: 4 * size].hex(' ')}"
        bodies.add(answer[4 * size :])
    assert len(bodies) == 1, f"the same question was answered differently: {bodies}"
    assert target.subject.data in (None, *bodies), f"the body of the answer is {bodies.pop()!r}"


@case(SOURCE, roles=ANSWERING)
async def empty_body(target: Target) -> None:
    """A question with an empty body is answered."""
    pipe = await target.pipe()
    await pipe.send(stack(2))
    assert (await pipe.receive("an answer")).startswith(stack(2))


@case("SP request/reply, 7; the limit is 8 by default, " + AGREED, roles=ANSWERING, every=True)
async def too_many_hops(target: Target) -> str:
    """A question with more words than the limit allows is not answered: it is dropped, or its pipe is closed."""
    return await target.fate(*(stack(size) + b"question" for size in (TTL + 1, 2 * TTL, 255)))


@case(SOURCE, roles=ANSWERING, every=True)
async def no_bottom(target: Target) -> str:
    """A question in which no word has the highest bit set is not answered: it is dropped, or its pipe is closed."""
    return await target.fate(word(1), word(1) + word(2), word(1) + word(2) + word(3) + b"ab", b"question")


@case(SOURCE, roles=ANSWERING, every=True)
async def shorter_than_a_word(target: Target) -> str:
    """A question too short for one word is not answered: it is dropped, or its pipe is closed."""
    return await target.fate(b"", b"\x80", b"\x80\0\0")


@case(SOURCE, roles=ANSWERING, every=True)
async def answers_go_where_the_question_came_from(target: Target) -> None:
    """When two pipes use the same words, each gets the answers to its own questions and no others."""
    first, second = await target.pipe(), await target.pipe()
    await first.send(stack(1) + b"of the first", stack(2) + b"of the first again")
    await second.send(stack(1) + b"of the second")
    assert (await second.receive("an answer")).startswith(stack(1))
    await second.send(stack(3))
    assert (await second.receive("an answer")).startswith(stack(3)), "the second pipe has got an answer to the first"
    for size in (1, 2):
        assert (await first.receive("an answer")).startswith(stack(size)), "the first pipe has not got its answers in order"


@case(f"{REQREP}, 5.2", roles=ANSWERING, every=True)
async def asking_peer_is_gone(target: Target) -> None:
    """A peer that asks and leaves at once does no harm."""
    for _ in range(5):
        pipe = await target.pipe()
        await pipe.send(*[stack(1) + b"question"] * 10)
        await pipe.wire.leave()


@case(f"{REQREP}, 6.1; SP surveyor/respondent, 6.1", roles=ASKING, every=True)
async def question_has_one_word(target: Target) -> None:
    """Its question begins with one word that has the highest bit set, and the next question has another word."""
    pipe = await target.pipe()
    seen = set()
    for _ in range(2):
        question = await pipe.receive("a question")
        assert len(question) >= 4, f"the question has {len(question)} bytes only"
        assert question[0] & 0x80, f"the highest bit of the first word is not set: {question[:4].hex(' ')}"
        assert target.subject.data in (None, question[4:]), f"the body of the question is {question[4:]!r}"
        seen.add(question[:4])
        await pipe.send(question[:4] + b"answer")
    assert len(seen) == 2, f"two questions have the same word: {seen.pop().hex(' ')}"


@case(f"{REQREP}, 6.1; SP surveyor/respondent, 6.1", roles=ASKING, every=True, shown=True, once=True, lives=False)
async def foreign_answers(target: Target) -> None:
    """It ignores an answer to another question, or without the highest bit, and accepts the right answer."""
    pipe = await target.pipe()
    own = (await pipe.receive("a question"))[:4]
    last = int.from_bytes(own, "big")
    others = (word(0x80000000 | (last + 1) & 0x7FFFFFFF), word(last & 0x7FFFFFFF), word(1) + own)
    await pipe.send(*(other + b"wrong" for other in others), own + b"right")
    await target.expect_printed(b"right")


@case(f"{REQREP}, 6.1; SP surveyor/respondent, 6.1", roles=ASKING, every=True, shown=True)
async def answers_too_short(target: Target) -> str:
    """An answer too short for one word is ignored, or ends its pipe."""
    fates = set()
    for short in (b"", b"\x80\0\0"):
        pipe = await target.pipe()
        own = (await pipe.receive("a question"))[:4]
        await pipe.send(short)
        try:
            await pipe.send(own + b"right")
            while (await pipe.receive("another question, or the end"))[:4] == own:
                pass
            await target.expect_printed(b"right")
            fates.add("dropped")
        except PipeEnded:
            fates.add("closed")
    return " or ".join(sorted(fates))


@case(f"{REQREP}, 6.1", roles=("req",), shown=True)
async def second_answer(target: Target) -> None:
    """The second answer to the same question is ignored."""
    pipe = await target.pipe()
    for text in (b"one", b"two"):
        own = (await pipe.receive("a question"))[:4]
        await pipe.send(own + text)
        await target.expect_printed(text)
        await pipe.send(own + b"again")


@case(f"{REQREP}, 1 and 6.1; {AGREED}", roles=("req",), shown=True, sides=BOTH, once=True, lives=False)
async def asks_again_when_the_pipe_dies(target: Target) -> str:
    """When the pipe of a request ends, it is sent again on the next one, with the same word or another, and the answer is accepted."""
    first = await target.pipe()
    before = await first.receive("a request")
    await first.wire.leave()
    second = await target.pipe()
    after = await second.receive("the request again")
    assert after[0] & 0x80
    assert after[4:] == before[4:], f"the request has come again as {after!r}"
    await second.send(after[:4] + b"right")
    await target.expect_printed(b"right")
    return "same word" if after == before else "another word"


@case(f"{REQREP}, 5.1", roles=("req",))
async def one_peer_is_asked(target: Target) -> None:
    """Each question goes to one peer only."""
    pipes = [await target.pipe(), await target.pipe()]
    seen = []
    question = await pipes[0].receive("a request, on the pipe that was there first")
    await pipes[0].send(question[:4] + b"answer")
    seen.append(question[:4])
    await pipes[0].wire.leave()
    question = await pipes[1].receive("the next request, on the other pipe")
    seen.append(question[:4])
    assert len(set(seen)) == 2, "both peers were asked the same question"
