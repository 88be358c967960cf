"""Word lists behind the labels of `sidecar.prompts.labels`.

Prompts are built from them: a change of either list changes labels, so it is a new prompt format.
"""

from __future__ import annotations

_GENERIC_TEXT = """
model models route routes routing router task tasks other others none general generic misc
miscellaneous various any all default user users request requests query queries question questions
answer answers response prompt message conversation chat assistant agent llm ai bot tier tiers
level levels class classes group groups type types kind kinds category categories option options
version domain action topic topics label set list item items thing things use using used make
making made get give given provide providing provided handle handling do does doing done help helps
helping want wants need needs needed about above across after also an and are as at be been before
being between both but by can could down each either etc every few for from had has have having he
her here hers him his how if in into is it its itself just like may might more most much must my
new no nor not of off on once only onto or our out over own per same she should so some such than
that the their them then there these they this those through to too under until up upon us very via
was we well were what when where whether which while who whose why will with within without would
yes yet you your based related including include includes
"""

_SPARE_TEXT = """
apple almond amber anchor ankle autumn bamboo banana barley basket beacon bear bell berry bird
blossom boat bone bottle brass bread breeze brick bronze brush bubble bucket buffalo butter
butterfly cabin camel candle canoe canyon carrot castle cave cedar chalk cheese cherry chimney
cinnamon clay cliff clock coal coast coconut comet copper coral cork cotton cow crab crane creek
crow crown crystal curtain dawn deer desert diamond dolphin dragon drum duck dusk dust eagle elbow
elephant elm feather fern fig fish flame flower fog forest fossil fountain fox frog frost garlic
ginger glacier glove goat goose granite grape grass gravel hammer harbor hawk hollow honey horn
horse iris iron island ivory jacket jade jar jewel kettle kite knot ladder lake lamp lantern lava
lavender leather lemon lime linen lion lizard magnet mango maple marble mint mist moon moss moth
mountain mouse mud mushroom needle nest nickel oak oasis oat ocean olive onion owl palm panda peach
pearl pepper pigeon pillow pine plum pond potato pumpkin quartz quilt rabbit rain reef ribbon ridge
river rope rose rust saddle sage salmon salt sand shadow sheep silk silver smoke snake snow soap
spider spoon squirrel storm straw sugar sword thunder tide tiger timber toast turtle valley
velvet violet volcano walnut whale wheat wolf wool zinc
"""

GENERIC = frozenset(_GENERIC_TEXT.split())
"""Words that do not tell one route from another."""

SPARE = tuple(_SPARE_TEXT.split())
"""Nouns that say nothing about a request, each one token in the SmolLM2 and Qwen vocabularies."""
