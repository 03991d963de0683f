"""How people ask a desk for something, and talk around it: each pattern stands for many sentences.

`[one|two|]` is any of the parts between the bars, and parts may hold more of them; `<with>` is one
of the patterns that stand in many. Slots: {item} `violin lesson`, {a_item} with its article, {who}
a name, {day} `Friday`, {on_day} `on Friday` or `today`, {days} `Friday's`, {other} and {on_other}
another day, {time} and {end} clock times, {span} what lies after, before or between them, {minutes}
a length, {me} who is asked; with a capital, {Day}, they begin a sentence. Talk has {city}, {animal}
with its article, {food}, and {please}, which ends a sentence.
"""

from __future__ import annotations

import re
from random import Random

COMMON = {
    "<lead>": "[|||Please |Hi, |Hello, |Hey {me}, |Hello {me}, |Good morning, ]",
    "<with>": "[ with {who}|]",
    "<long>": "[{minutes} minutes|{minutes} minutes in all|about {minutes} minutes|{minutes} min]",
}

BOOK = (
    "<lead>[book|add|enter|reserve|schedule|arrange|set up|write down|register|plan] "
    "{a_item}<with> [{on_day} at {time}|at {time} {on_day}|{on_day}, {time}], <long>.",
    "<lead>[I have|I need|I want|there is|I am having|I planned|we have|I would like] "
    "{a_item}<with> {on_day} at {time}[,|. It takes|. It needs|, that takes|. Keep|. Allow] "
    "<long>.",
    "[Can|Could|Would|Will] you [add|enter|book|write in|fit in|plan] {a_item}<with> [{on_day} "
    "at {time}|for {day} at {time}]? [It begins then and lasts |]<long>[, please|].",
    "[{Day} at {time}|At {time} {on_day}|{Day}, {time},|{On_day} from {time}] [I have|there is|"
    "we do|I go to|it is] {a_item}<with>[,|. Block|. Reserve|; count with|, for] <long>.",
    "[New|One more|Another|Next entry]: {item}<with>, [{day} {time}|{time} {day}|{day}, {time}|"
    "{day} at {time}], <long>.",
    "{Item}<with>[:|,| is| will be] {on_day} at {time}[, |. Length: |. Duration: |; ]<long>[, "
    "add it|. Thanks|. Put that in|].",
    "[Block|Keep|Hold|Reserve|Allow] <long> [{on_day} at {time}|from {time} {on_day}] for "
    "{a_item}<with>.",
    "[{who} and I will have|{who} and I want|{who} wants|{who} would like|{who} invited me to|"
    "{who} comes to] {a_item} {on_day} at {time}[, |. Take |. Write |; plan ]<long>.",
    "[Meet|I will meet|We meet|I am to meet|Invite|I told] {who} {on_day} at {time}[: {item},| "
    "for {a_item},|; {a_item},] <long>.",
    "[Do not forget|Remember|Remind me of|Think of] {a_item}<with>[. It is|, it is|:] {on_day} "
    "at {time}, <long>.",
    "[It looks like|It seems|They say|It is agreed that] [there is|I have|we have] "
    "{a_item}<with> {on_day} at {time}[ and it takes|, for|, with|:] <long>.",
    "[Day|The day]: {day}. [Time|Start]: {time}. [Length|Duration]: <long>. [What|Entry]: "
    "{item}<with>.",
)

MOVE = (
    "<lead>[move|shift|push|change|postpone|transfer|bring] [my|the|our] {item}<with> from {day} "
    "to {other}[ at|,|, now at|, then at] {time}.",
    "<lead>[move|shift|push|change|postpone|set] {days} {item}<with> to {other}[ at|,|;] {time}.",
    "[My|The|Our] {item}<with> [{on_day}|of {day}|that was {on_day}] [is now|will now be|should "
    "be|must be|is better] {on_other}[ at|,] {time}.",
    "[My|The|Our] {item}<with> [was|was planned|had been|was meant to be] {on_day}[; it is now|, "
    "now it is|, but it will be|. Make that|. I want it] {on_other} at {time}.",
    "[I can not come|I have no time|I am away|I am not there|It does not suit me] {on_day}[, so|"
    ".|;] [take|put|place|have|plan] [my|the] {item}<with> {on_other} at {time}.",
    "[Can|Could|Would] you [move|put|bring|change] [{days}|the] {item}<with> [from {day} |of "
    "{day} ][to {other}|over to {other}], {time}?",
    "{Days} {item}<with> [is now|goes|moves|should go|has to wait] [to|until] {other}[ at|,|. "
    "Time:|, starting at] {time}.",
    "[{who} can not come|{who} is away|{who} has no time|{who} is ill|{who} is not here] "
    "{on_day}[, so| and|:|;] [my|our|the] {item} [is|goes|moves|should be] [to {other}|"
    "{on_other}] at {time}.",
    "[{who} asks|{who} wants|{who} begs|{who} would like] to [have|see|move|shift] {days} {item} "
    "[moved to|on|to] {other}[ at|,] {time}.",
    "[Not|No longer] {on_day}[, but|:|;] {on_other} at {time}[. That is|: that is|, for] [my|"
    "the] {item}<with>.",
    "[Instead of|Rather than] {day}, [the|my|our] {item}<with> [starts|begins|will be|is] "
    "{on_other} at {time}.",
    "[From|Off] {day} to {other}, {time}: [the|my] {item}<with>.",
    "[We said|I said|It said] {day}[, but| for the {item}, but|. Now] [make it|I mean|it is] "
    "{on_other} at {time}[: {item}<with>|, {item}<with>].",
)

CANCEL = (
    "<lead>[cancel|drop|delete|remove|strike out|erase|call off|skip|wipe] [my|the|our] "
    "{item}<with> {on_day}.",
    "<lead>[cancel|drop|delete|remove|erase|call off|skip|clear] {days} {item}<with>[, please|].",
    "[My|The|Our] {item}<with> {on_day} [is off|is not needed|falls out|will not be|won't be|is "
    "cancelled|can not be][, remove it|, forget it|.|]",
    "{Days} {item}<with> [is off|can be dropped|does not happen|is called off|is no longer on][. "
    "Delete it|, delete it|]",
    "[I will not|I won't|We will not|I can not] [go to|come to|make|be at] [the|my] {item}<with> "
    "{on_day}[, drop it|. Take it away|]",
    "[No|There is no|There will be no] {item}<with> {on_day}[ any more| this time|, sorry|]",
    "[{who} is sick|{who} has no time|{who} can not come|{who} said no|{who} is away][, so|:|;| "
    "and] [no|there is no|drop the|delete our|forget the] {item} {on_day}",
    "[Throw|Leave] out [my|the] {item}<with> {on_day}[, please|]",
    "[Sorry, |Alas, |]I [do not want|do not need|have to miss] [my|the] {item}<with> {on_day}[. "
    "Remove it|, cancel it|]",
    "[{Day}|{On_day}] [will be without|is free of|has no more of] my {item}<with>[, take it off|]",
)

ASK = (
    "[What|What else|What things|Which things] [do I have|have I got|is on|is left|must I do|"
    "happens|comes up|is booked|stands there] {on_day} {span}?",
    "[Show me|Read me|List|Tell me about|Let me hear] [{day}|all of {day}|my {day}] {span}.",
    "[Is|Is there] [anything|something|nothing] [on|planned|booked|going on|to do] {on_day} "
    "{span}?",
    "[Do I have|Have I] [anything|something|plans|a free hour] {on_day} {span}?",
    "[How|What] [does {day} look like|is {day} like|about {day}] {span}?",
    "[Show|Read|List|Name] [{days} entries|{days} plans|my plans {on_day}|what I do {on_day}] "
    "{span}.",
    "[Am I|Will I be|Are we] [free|at home|away|alone] {on_day} {span}?",
    "{Span}, [what is there {on_day}|what do I do {on_day}|is {day} free]?",
)

SPANS = (
    "[after {time}|from {time} on|later than {time}|once it is {time}|since {time}|past {time}]",
    "[before {end}|until {end}|up to {end}|earlier than {end}|till {end}|by {end}]",
    "[between {time} and {end}|from {time} to {end}|from {time} until {end}|from {time} till "
    "{end}|after {time} and before {end}]",
)

SEEK = (
    "[When|At what time|Where|Why] [do I|will I|should I|must I] [see|meet|visit|talk to] {who} "
    "{on_day}?",
    "[Do I|Will I|Shall I] [see|meet|visit|have to call] {who} {on_day}?",
    "[Is there|Do I have|Have I|Is] [anything|something|a plan] [with|for] {who} {on_day}?",
    "[Find|Look for|Look up|Search] {who} [{on_day}|in {days} entries|in my list {on_day}].",
    "[When|What time] [is|does] {who} [here|come|there|arrive] {on_day}?",
    "[Find out|Tell me|See|Check] [if|when|whether] I [see|meet|visit] {who} {on_day}.",
    "[Which|What] [plan|entry|thing] [with|of] {who} [is|was] {on_day}?",
    "[Did {who} and I|Did I and {who}] [agree on|plan|want] [something|anything] {on_day}?",
)

OTHER_TIME = (
    "[No, |Sorry, |Oh, |Wait, |][make it|I meant|it is|better|I want|say] {end}[, please|| then].",
    "{end} [is better|would be right|suits me|it is].",
    "[Can|Could] it [be|start|begin] at {end}?",
    "[Change|Set] [it|that] to {end}.",
)

OTHER_DAY = (
    "[No, |Sorry, |Oh, |Wait, |][make it|I meant|it is|better|let it be] {other}[, same time|, "
    "please| at the same time|].",
    "[Can|Could] [it|that] be {on_other}?",
    "[Move|Push|Change] it to {other}, [the time is right|same hour|at the same time].",
)

TAKE_BACK = (
    "[No, |Sorry, |Oh no, |][drop|forget|cancel|delete|remove] [it|that|this][| please|].",
    "[Leave|Take] [it|that] [out|away|off][, please| after all|].",
    "I [do not want|changed my mind about] it.",
)

TALK = {
    "who": (
        "[Who|What] are you[ then| really|]?",
        "[Say|Tell me] who you are.",
        "[What is|Say|May I know] your name[, please|]?",
        "[Who|Whom] [do I speak to|am I speaking with|answers me|is that|is speaking]?",
        "[Do|Have] you [have|got] a name?",
        "Introduce yourself.",
    ),
    "can": (
        "[What|How much] [can|do|could] you do[ here|]?",
        "[How|With what] [can|could|do] you help [us|people|somebody]?",
        "[What are you for|What are you able to do|What is your work|What are your skills]?",
        "[Explain|Show me|List] [what you do|your skills].",
        "[What|Which things] may [I|one] ask[ you| of you|]?",
        "I need help, what do you know?",
    ),
    "hello": (
        "[Hello|Hi|Hey|Good day|Good evening|Good afternoon][.|!|, {me}.|, {me}!| to you.| you.]",
        "[Is anybody there|Are you there|Can you hear me]?",
        "Greetings[, {me}|].",
    ),
    "well": (
        "[How|Tell me, how] [are you|do you feel|is life|is it going|have you been][ today| now| "
        "then|, {me}|]?",
        "[Are you|You are] [well|fine|happy|tired][ today|]?",
        "[Had|Did you have] a good [day|night]?",
    ),
    "human": (
        "[Are you|Is this|Am I talking to|Do I speak with] [a man|a woman|a machine|a program|a "
        "computer|somebody real|a real human|a robot]?",
        "[Do you|Can you] [live|breathe|eat|sleep|feel]?",
        "You are [no human|human|a machine], [right|are you not]?",
    ),
    "else": (
        "[Write|Tell|Sing|Read|Give] [me|us] [a poem|a story|a riddle|a letter|a fairy tale|some "
        "news|a book|a joke|an opera]{please}",
        "[Will|Does|Did] it [rain|freeze|storm|get warm] [today|tomorrow|tonight|here|soon]?",
        "[What|Who|Where] is [the capital of {city}|the king|the moon|the largest {animal}|"
        "{city}|love|the meaning of life|the price of {food}]?",
        "[Play|Sing|Draw|Paint] [some music|a tune|a picture of {animal}|a melody]{please}",
        "[Who|When] [won the race|wrote that book|was the war|built {city}]?",
        "[Do you like|Can you cook|How do I cook|Where can I buy] {food}?",
        "[How|Why] [old is the earth|far is {city}|is the sky blue|big is {animal}]?",
        "[What do you think of|Translate|Explain|Count] [the weather|{food}|{city}|{animal}|"
        "politics]{please}",
        "How is the weather in {city}?",
    ),
    "bye": (
        "[Goodbye|Bye|Bye bye|Farewell|Good night|So long][.|!| now.| and take care.|, my friend.]",
        "[See you|Until] [tomorrow|soon|next week].",
        "I [am off|leave|must go|am done][ now| for today|].",
        "That [is|was] [all|everything|it][ now| for today|].",
    ),
    "json": (
        "[Why|For what|How come] [do you use|do you write|must it be|are there] [JSON|brackets|"
        "braces|such lines|this form|these signs]?",
        "[What|Which] [form|format|shape] do your [answers|replies] have?",
        "[Why|How] do [you reply|you answer|your replies look] [in this way|so strangely|like a "
        "machine]?",
    ),
    "thanks": (
        "[Thanks|Thank you so much|I thank you|Very kind|Well done][.|!|, that was quick.|, "
        "{me}!| for that.]",
        "[That is|How] [nice|kind|good] of you.",
    ),
    "named": (
        "[I am|My name is|This is|Here is|You speak with|They call me] {who}.",
        "[Hello|Hi|Hey|Good day][,| {me},| there,] [this is {who}|{who} here|I am called {who}|"
        "it is {who}].",
        "{who} is my name[, hello|].",
    ),
    "thanked": (
        "[Thanks|Many thanks|A big thank you|Greetings and thanks][ to you|], [says {who}|{who}|"
        "your {who}].",
        "{who} [thanks you|is grateful|wants to thank you][ for it|].",
    ),
}
"""What is said that is no request, by what it means; `named` and `thanked` hold a name."""

_PART = re.compile(r"\[([^\[\]]*)\]")


def said(pattern: str, random: Random) -> str:
    """Return one of the sentences a pattern stands for, its slots still open."""
    for name, part in COMMON.items():
        pattern = pattern.replace(name, part)
    while "[" in pattern:
        pattern = _PART.sub(lambda found: random.choice(found[1].split("|")), pattern)
    return pattern
