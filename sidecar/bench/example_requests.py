"""What people ask under the policies of `examples/`: written by hand, none is an example of its
route."""

from __future__ import annotations

REQUESTS: dict[str, tuple[str, ...]] = {
    "code_generation": (
        "I need a bash script that renames all jpg files in a folder by their date.",
        "Give me a regular expression that matches German postal codes.",
        "Could you write unit tests for a function that parses ISO dates?",
    ),
    "debugging": (
        "My Flask app returns 500 as soon as I post a form with an umlaut in it.",
        "The build fails with undefined reference to pthread_create, why?",
        "This test passes alone but fails when I run the whole suite.",
    ),
    "code_review": (
        "Please look over this class and tell me what you would change.",
        "Is there a cleaner way to structure these nested if statements?",
        "I refactored the payment module, can you check it for mistakes?",
    ),
    "writing": (
        "Help me word a farewell note for a colleague who is retiring.",
        "Rewrite my cover letter so that it sounds more confident.",
        "I need a short story for a bedtime about a lonely lighthouse.",
    ),
    "translation": (
        "Translate this contract clause into French, please.",
        "What would a Japanese speaker say for get well soon?",
        "Please put the following two sentences into Polish.",
    ),
    "summarization": (
        "Condense the attached minutes to what was decided and by whom.",
        "TL;DR of this thread, please, I have two minutes.",
        "What are the main findings of this forty page study?",
    ),
    "math": (
        "Solve x squared minus five x plus six equals zero and show the steps.",
        "If a loan of 12000 costs 4 percent a year, what do I pay each month?",
        "Prove that the square root of two is irrational.",
    ),
    "general_knowledge": (
        "How do vaccines teach the immune system what to attack?",
        "Which river is longer, the Danube or the Rhine?",
        "When and why did the Roman Republic become an empire?",
    ),
    "order_status": (
        "The tracking page has not changed for four days, is my package lost?",
        "Will the shoes I ordered last night get here before the weekend?",
        "Can you tell me which courier has my delivery?",
    ),
    "returns_and_refunds": (
        "I would like to send the jacket back, it is too tight at the shoulders.",
        "You got my return two weeks ago and I still do not have the money.",
        "Can I swap the blue lamp for the green one?",
    ),
    "billing": (
        "There is a fee on my invoice that I do not recognise.",
        "Can I pay by bank transfer instead of with a card?",
        "The discount code was not taken off the total.",
    ),
    "account_access": (
        "I got a new phone and cannot get past the two-factor code.",
        "How do I change the email address that I log in with?",
        "Please delete my account and everything in it.",
    ),
    "technical_problem": (
        "The speaker blinks red and does not connect to my phone.",
        "Your website shows a blank page when I press checkout.",
        "How do I set up the printer I bought from you?",
    ),
    "product_advice": (
        "Which of your backpacks is better for a week of hiking?",
        "I am between two sizes, should I take the larger one?",
        "Is the red kettle available again soon?",
    ),
    "complaint": (
        "This is a disgrace, I am going to my lawyer if nobody calls me today.",
        "I have been a customer for ten years and I am leaving after this.",
        "Stop sending me canned answers and let me talk to a human being.",
    ),
    "flights": (
        "Is there a direct connection from Munich to Porto on the third?",
        "How much does a second suitcase cost on my flight home?",
        "I would like to choose window seats for both of us.",
    ),
    "hotels": (
        "We need a family room with breakfast for three nights in Bologna.",
        "What time can we check in, and is there a pool?",
        "Find an apartment by the sea that takes dogs.",
    ),
    "itinerary": (
        "Plan five relaxed days in Scotland for someone who hates driving.",
        "Is one day enough for the museums, or should we stay for two?",
        "What is worth a day trip from Valencia?",
    ),
    "visas_and_entry": (
        "My passport expires in four months, will they let me into Thailand?",
        "Which vaccinations are asked for at the border of Kenya?",
        "Can I bring cheese through customs into the United States?",
    ),
    "food": (
        "Where do locals eat dumplings in this part of town?",
        "I am allergic to nuts, which dishes should I stay away from?",
        "A table for six tonight somewhere that is not too loud, any ideas?",
    ),
}
"""By the name of the route."""

OF_NO_ROUTE = (
    "Thanks, that was all for today.",
    "Perfect, have a nice evening!",
    "Never mind, I found it myself.",
    "ok",
)
"""What ends a conversation."""

REPLIES = (
    "Sure, I have looked into that and sent you the details. Is there anything else?",
    "That should be done now. Let me know if something is still missing.",
    "Here is what I found; tell me if you need more than that.",
    "Done. It can take a few minutes until you see the change.",
    "I am sorry about that. I have made a note, and it will be looked at today.",
)
"""What the assistant said between two requests."""
