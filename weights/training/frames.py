"""The raw material of the stories: word lists and sentence frames, nothing else.

A frame is a sentence or two with slots. `{A}` and `{B}` are the two characters, `{he} {him} {his} {He} {His}` the
pronouns of A and `{B.he}` and so on those of B; `{animal}` draws from the list of that name in WORDS, `{a animal}`
puts "a" or "an" before it, `{animal}s` is its plural, `{animal.1}` the same animal wherever the story says it.
`<bat:animal>` is a word with two senses and the sense meant here.

Every list runs from common to rare: a word of rank r is drawn with a weight of 1/r, as in natural text.
"""

def _list(text):
    return text.split()


GIRLS = _list("""
Mia Anna Lily Rosa Ella Zoe Nina Clara Ruth Ivy Maya Emma Hana Lucy Tara Olga Wilma Freya Amina Greta Yuki
Priya Edith Noor Bella Ingrid Marta Salma Petra Odette Zelda Winifred Philippa Isolde Ottilie Xanthe
""")
BOYS = _list("""
Tom Ben Sam Leo Max Omar Jack Finn Hugo Paul Ravi Noah Carl Adam Ivan Peter Oscar Theo Kofi Diego Otto Emil
Karim Jonas Felix Boris Stefan Hamish Rufus Tariq Wendell Barnaby Cornelius Thaddeus Fergus Leopold
""")
PETS = _list("""
Biscuit Pepper Coco Patch Daisy Lucky Snowy Ginger Button Max Toffee Pickle Smoky Honey Domino Bramble Marble
Nutmeg Waffles Pebble Cricket Mustard Tinker Figaro Truffle Quincy Bandit Muffin Sultan Zigzag
""")

WORDS = {
    "thing": """kite ball drum boat book hat key basket lamp doll cup map rope blanket spoon flute bucket box ladder
        whistle puzzle scarf mirror candle hammer umbrella lantern bottle pillow teapot violin coin shovel robot crown
        compass necklace jar hoop bicycle helmet trumpet feather magnet shell telescope pencil sledge brush purse
        trowel globe marble jigsaw slipper kettle button ribbon hourglass clarinet thimble barometer tambourine
        accordion microscope paperweight spinning-wheel""",
    "place": """in the barn|on the shelf|under the bed|in the garden|behind the shed|in the kitchen|on the table|under
        the bridge|in the cupboard|by the gate|in the attic|on the roof|behind the sofa|in the cellar|beside the pond|
        under the stairs|in the garage|on the porch|behind the curtain|in the drawer|on the windowsill|under the oak|
        in the cave|beside the fireplace|in the wardrobe|on the balcony|behind the bakery|in the greenhouse|under the
        hedge|in the tower|beside the fountain|on the piano|in the stable|behind the church|in the library|under the
        bench|in the tent|on the island|inside the chimney|in the lighthouse|beside the windmill|in the hayloft|behind
        the waterfall|in the pantry|under the verandah|in the observatory""",
    "animal": """dog cat rabbit horse cow sheep goat pony pig hen  fox donkey squirrel frog hedgehog turtle
        kitten puppy lamb badger otter goose parrot hamster deer beaver mole tortoise raccoon camel llama weasel yak
        armadillo porcupine""",
    "bird": """robin crow owl pigeon sparrow swan gull hen blackbird magpie eagle stork finch wren raven heron falcon
        woodpecker nightingale kingfisher cormorant""",
    "food": """bread soup cake cheese rice honey pie porridge jam eggs pasta pancakes stew salad toast biscuits noodles
        butter pudding chocolate beans sausages yoghurt dumplings pickles omelette custard gingerbread
        marmalade casserole""",
    "fruit": """apple pear plum orange lemon banana peach cherry melon grape apricot fig strawberry raspberry mango
        quince pomegranate""",
    "colour": "red blue green yellow white black brown pink orange purple grey golden silver violet turquoise scarlet",
    "adj": """little old big new small nice pretty soft strong bright heavy long tiny warm shiny clean wooden round
        funny strange quiet dusty smooth broken lovely plain fine rough gentle clever curious sturdy crooked
        wonderful splendid ancient delicate enormous peculiar magnificent rickety""",
    "feeling": """happy glad sad tired proud angry worried sleepy hungry excited afraid lonely cheerful surprised shy
        calm brave thirsty nervous jealous grateful puzzled content disappointed homesick bewildered""",
    "weather": """sunny rainy cold windy warm cloudy snowy foggy hot stormy frosty misty chilly breezy grey damp mild
        drizzly blustery""",
    "time": "morning afternoon evening day",
    "day": "Monday Friday Sunday Saturday Tuesday Wednesday Thursday",
    "relative": "mother father grandmother grandfather sister brother aunt uncle cousin neighbour godmother",
    "job": """baker farmer teacher doctor sailor gardener postman tailor fisherman shepherd blacksmith carpenter
        painter librarian cook driver miller watchmaker shopkeeper nurse dentist mayor beekeeper captain locksmith
        cobbler glassblower""",
    "town": """market park school library river harbour museum village station bakery theatre zoo beach forest church
        mill castle hospital bookshop circus lake meadow quarry monastery vineyard""",
    "tree": "oak apple-tree willow birch pine beech chestnut maple fir elm poplar cedar hazel sycamore",
    "flower": "rose-bush daisy tulip poppy lily sunflower violet bluebell daffodil lavender marigold foxglove",
    "cloth": "coat hat scarf jumper shirt dress jacket apron cap cloak shawl cardigan bonnet waistcoat",
    "material": "wood stone paper metal wool clay straw brick leather cotton silk marble copper",
    "tool": "hammer rake spade brush axe broom bucket ladder needle chisel wheelbarrow spanner",
    "insect": "bee ant butterfly beetle spider moth ladybird grasshopper dragonfly snail caterpillar",
    "adverb": """slowly quickly quietly carefully happily gently softly loudly suddenly proudly kindly sadly bravely
        patiently eagerly politely anxiously cheerfully clumsily stubbornly""",
    "event": """race picnic fair party concert parade feast wedding dance play birthday harvest contest festival
        regatta carnival""",
    "countable": """ducks apples eggs shells frogs buttons stones sheep candles pears boats cups chicks nuts coins
        plums geese pigeons pumpkins acorns marbles lambs""",
}

# ---------------------------------------------------------------------------------------------- openings and endings
OPENINGS = """
Once upon a time there was a {A.kind} called {A}, who lived {home} with {his} {relative.1}.
One {weather.1} {time}, {A} and {B} met by the old stone wall.
It was {a weather.1} {time}. {A} was {feeling}, and so was {B}.
There once lived {a feeling.1} {A.kind} named {A}. {His} best friend was {B}.
On {a weather.1} {day} {A} woke up early and looked out of the window.
Long ago, in {a adj} house near the {town.1}, lived {A} and {his} {relative.1}.
{A} and {B} were good friends. They did almost everything together.
Last {day}, {A} had nothing to do, so {he} went to see {B}.
"What shall we do today?" asked {A}. "Let us have an adventure," said {B}.
Early one {weather.1} {time}, {A} heard a knock at the door. It was {B}.
{A} was the youngest child in the village, but {he} was never afraid.
The first day of the holidays was {weather.1}, and {A} could not sit still.
When {A} was small, {he} lived {home}, and {B} lived next door.
It had been {a weather.1} week. At last {A} and {B} could go outside.
Every {day.1} {A} visited {B}, and this {day.1} was no different.
In a town by the sea there lived {a job.1}, and {A} was the {job.1}'s only {child}.
{A} opened {his} eyes. It was {weather.1} outside, and today {B} was coming.
Nobody in the village got up as early as {A}. Only {B} came close.
On that {weather.1} {time} the wind blew around the house, and {A} put on {his} {cloth}.
My {relative} told me this story about {A} and {B}.
"Hurry up!" called {B}. {A} was still looking for {his} {cloth}.
Here is a story about {A}, {B} and a long {weather.1} day.
School was over, and {A} ran home through the {weather.1} {time}.
After breakfast {A} ran across the yard to find {B}.
""".strip().splitlines()

HOMES = """in a small house by the river|near the edge of the forest|on a farm|at the top of a hill|in a tall house in
the town|above the bakery|in a cottage with {a colour} door|on a boat in the harbour|beside the mill|in a village far
from the sea|at the end of a long road|next to the railway""".replace("\n", " ").split("|")

ENDINGS = """
{A} and {B} walked home together, tired but {feeling}.
That night {A} slept very well.
From that day on, {A} and {B} were even better friends.
"What a day!" said {A}, and {B} laughed.
When the moon came up, everybody went to bed.
And {A} never forgot that {time}.
{A} told {his} {relative} everything at supper.
Then it was time for tea, and the long day was over.
"Let us do it again tomorrow," said {B}.
And that is the end of the story.
{A} smiled. It had been a good day.
In the end everyone was {feeling}, and {A} most of all.
The stars came out one by one, and {A} fell asleep.
{B} waved goodbye, and {A} ran all the way home.
They ate {food} and {food} for supper and talked until it was dark.
After that, {A} often thought of this {time}.
So {A} learned to look before {he} ran.
And if you go there today, you may still see {A} and {B}.
""".strip().splitlines()

LINKS = """
A little later,|After lunch,|Before long,|That same {time},|On the way,|Meanwhile,|Soon,|Some time later,|When the clock
struck {hour},|While they rested,|Not long after that,|Just then,|Later in the day,|After a short rest,
""".replace("\n", " ").strip(" ,").split("|")

# Between two adventures of one long story.
NEXT = """
The next day brought something new.
A week later {A} and {B} met again.
But that was not all that happened that summer.
The day after, {B} came back, and {A} was already waiting.
Not long afterwards they had another adventure.
Then a new week began.
When {A} was a little older, this happened.
"Do you remember what happened next?" {B} often asked.
""".strip().splitlines()

# ------------------------------------------------------------------------------------------------------------- plots
# One plot a block: its name, then one step a line; the lines that start with "/" are other ways to tell that step.
PLOTS = """
lost animal
{A} had {a animal.1} that liked to wander.
/ {A} looked after {a adj.1} {animal.1}.
/ Everyone in the village knew the {animal.1} that belonged to {A}.
One {time} the {animal.1} was gone.
/ But when {A} came to feed it, the {animal.1} was not there.
/ Then somebody left the gate open, and the {animal.1} ran away.
{A} was very {feeling} and called {B}.
/ "We must find it before dark," said {B}.
/ {B} came at once to help.
They looked {place} and {place}, but saw nothing.
/ They asked the {job}, who had not seen it.
/ They followed small footprints past the {town}.
Suddenly {A} heard a sound {place}.
/ Then {B} saw two bright eyes {place}.
/ At last they found a trail of crumbs.
It was the {animal.1}, {feeling} but safe.
/ There sat the {animal.1}, eating {food}.
/ The {animal.1} had only gone to see the {bird}s.
{A} hugged it, and they shut the gate with care.
/ {A} carried the {animal.1} home and gave it {food}.
/ "Do not do that again," said {A} to the {animal.1}.

building a boat
{A} wanted to build a raft out of {material}.
/ {A} had a plan: to build a raft and cross the pond.
/ "Let us make a raft," said {A}.
{B} brought {a tool} and some string.
/ {B} found old boards behind the mill.
/ First they drew the raft on a piece of paper.
They worked all {time}, and their hands got sore.
/ They tied the boards with {adj} knots.
/ They measured twice and cut once.
The first raft sank at once, and they both got wet.
/ The first time they tried, the raft fell apart.
/ But the raft leaned to one side, because it was too heavy there.
So they added more {material}, and now it floated.
/ The {job} showed them a better knot, and that helped.
/ "We need to make it wider," said {B}, and {B.he} was right.
At last {A} sailed across the pond and back.
/ In the end the raft carried them both to the other side.
/ The ducks watched as {A} and {B} sailed slowly by.

birthday cake
It was the birthday of {B}, and {A} wanted to bake a cake.
/ {A} wanted to surprise {B} with a cake.
/ "Today is a special day," said {A}, and got out the flour.
{He} mixed flour, sugar and four eggs in a bowl.
/ {He} read the recipe twice and put on an apron.
/ The butter was hard, so {he} warmed it near the stove.
By mistake {he} used salt in place of sugar.
/ Then the telephone rang, and {he} forgot the oven.
/ But the {animal.1} jumped up and ate half of it.
The cake tasted terrible.
/ When {he} came back, the kitchen was full of smoke.
/ {A} nearly cried.
{His} {relative.1} said, "We can start again."
/ {A} took a deep breath and began once more.
/ The {job.1} from next door brought more {food}.
The second cake was even better than the first would have been.
/ This time everything went well, and the cake smelled wonderful.
/ The new cake was {colour} and had {a fruit} on the top.
{B} said it was the best cake in the world.
/ {B} blew out the candles and made a wish.
/ When {B} saw it, {B.he} clapped {B.his} hands.

the storm
In the {time} dark clouds came over the hills.
/ The wind grew stronger and stronger.
/ First it was quiet, and then the thunder began.
{A} and {B} ran to the nearest house.
/ "We should go inside," said {B}.
/ The {job.1} told everyone to close their windows.
Rain beat against the roof, and the river rose.
/ {a tree} fell across the road.
/ All the lamps went out at once.
{A} was {feeling}, because {his} {relative.1} was still outside.
/ They sat close together and told each other jokes.
/ {B} lit a candle and sang an old song.
After an hour the rain stopped.
/ Slowly the thunder moved away.
/ Then the wind dropped, and a rainbow stood over the fields.
The next day they helped the {job.1} to mend the roof.
/ Everyone came out to clear the road.
/ They found that only a few tiles were broken.

the market
{A} went to the market to buy {food.1}.
/ {His} {relative.1} sent {A} to the market with a long list.
/ {A} had some coins and wanted to buy {a fruit.1}.
The market was full of people and noise.
/ There were tables of {food}, {food} and flowers.
/ A man sold {animal}s, and a woman sold hats.
{A} looked for a long time and could not choose.
/ {A} met {B}, who was selling {fruit}s.
/ {A} asked the price, but it was too high.
Then {he} saw that {his} purse was gone.
/ But there was a hole in {his} pocket, and the coins had fallen out.
/ Just then {a animal.1} ran between the tables and everything fell.
{B} had seen it fall and gave it back.
/ {A} walked back {adverb}, and there it lay in the dust.
/ Everyone helped to pick the things up.
To say thank you, {A} gave {B} half of the {food.1}.
/ {A} paid and went home with a full basket.
/ "Honest friends are worth more than money," said {his} {relative.1}.

the sick friend
{B} was ill and had to stay in bed.
/ {B} did not come to school. {B.He} had a bad cold.
/ "Where is {B}?" asked {A}. "{B.He} is ill," said the teacher.
{A} felt sorry for {B.him}.
/ {A} thought about what would make {B.him} {feeling}.
/ {A} did not want to play alone.
So {he} picked flowers and made some soup.
/ {He} wrote a long poem about {a animal.1} and {a insect}.
/ {He} packed {food}, a game and a funny picture.
{B} sat up in bed and smiled.
/ When {B} read it, {B.he} laughed until {B.he} coughed.
/ "Thank you," said {B} in a small voice.
The doctor came and said that {B} must sleep.
/ They played until the doctor came.
/ They talked {adverb} for an hour.
After a week {B} was well again.
/ Soon {B} could run and jump as before.
/ A few days later the two friends raced across the field.

the race
The whole school was getting ready for the big race.
/ {A} wanted to win the race on {day}.
/ Every year there was a race from the mill to the bridge.
{A} trained every day, even when it was {weather}.
/ {A} had new shoes, and {B} had old ones.
/ Everybody thought that {B} would be the fastest.
The {job.1} counted to three, and they ran.
/ A crowd stood beside the road and cheered.
/ At the start {A} was far behind.
Half way, {B} fell and hurt {B.his} knee.
/ Near the end, {A} tripped over a root.
/ By the bridge {a animal.1} walked across the road and would not move.
{A} stopped and helped {B.him} up.
/ They looked at each other and began to laugh.
/ "Come on, we can do it together," said {B}.
They crossed the line side by side, the very last.
/ So a small girl from the next village won.
/ They did not win, but everybody clapped.
The {job.1} gave them both {a adj} prize.
/ {His} {relative.1} said that kindness is better than speed.
/ {A} was {feeling} all the same.

the dark night
{A} could not sleep.
/ It was late, and the house was silent.
/ {A} lay in bed and listened to the wind.
There was a strange noise at the window.
/ Something scratched behind the wall.
/ {He} saw a tall shadow on the floor.
{A} pulled the blanket over {his} head.
/ {His} heart beat fast.
/ "Who is there?" {he} asked {adverb}.
Nobody answered.
/ The noise came again, louder than before.
/ {He} thought of calling {his} {relative.1}.
In the end {he} got up and opened the curtain.
/ {He} took a lamp and went to look.
/ Then {he} counted to ten and sat up.
It was only {a tree} moving in the wind.
/ It was {a bird} with {a adj} beak.
/ It was just the {animal.1}, who wanted to come in.
{A} laughed and went back to bed.
/ After that {he} slept until morning.
/ The next day {he} told {B} about it, and they both laughed.

the new child
A new {B.kind} came to the school, and {B.his} name was {B}.
/ {B} had just moved to the village and knew nobody.
/ On {day} the teacher said, "This is {B}."
{B} was shy and sat alone by the window.
/ Nobody spoke to {B} at first.
/ {B} spoke another language and understood only a few words.
{A} remembered how it felt to be new.
/ {A} saw that {B} was {feeling}.
/ "Would you like some of my {food.1}?" asked {A}.
{A} drew a picture of {a animal.1}, and {B} wrote its name below.
/ {A} showed {B} the best tree to climb.
/ They played a game that needs no words.
{B} taught {A} a song from far away.
/ Soon {B} laughed and told {A} about the sea.
/ It turned out that {B} could whistle like {a bird}.
The others came to listen, and now {B} had many friends.
/ By the end of the week everyone knew {B}.
/ The next day {B} was the first to wave.

the garden
{A} planted {flower} seeds in a row.
/ In spring {A} dug a small garden behind the house.
/ {A} and {B} each planted a seed in a pot.
Every day {he} gave them water.
/ {He} waited and waited, but nothing happened.
/ {B} said that plants like music, so {A} sang to them.
Then {a insect} ate the first green leaf.
/ {a animal.1} dug a hole in the middle of the bed.
/ For two weeks the sun was too hot.
{A} built a little fence out of {material}.
/ {A} put the pots in the shade.
/ "Plants need time," said {his} {relative.1}.
One {weather} {time} the first flower opened.
/ In summer the whole garden was {colour}.
/ At last there was a small green shoot.
{A} gave the best flower to {B}.
/ {B} painted a picture of it.
/ They sold flowers at the gate and bought more seeds.

the treasure
{A} found an old piece of paper in a book.
/ In the attic {A} found a paper with strange signs.
/ {B} came running with a paper in {B.his} hand.
There was a cross on it, and an arrow.
/ It showed the way from the church to {a adj} {tree}.
/ Somebody had written: walk ten steps north and dig.
They took {a tool} and set out at once.
/ They told nobody and went through the wood.
/ They counted their steps {adverb}.
They dug until their arms hurt.
/ The hole grew deep, and {B} wanted to give up.
/ They found only stones and roots at first.
Then the spade hit something hard.
/ Under a flat stone lay a small iron chest.
/ "There is something here!" cried {A}.
In the chest were letters from long ago.
/ It was full of toys that children had hidden a hundred years before.
/ Inside lay a coin and a note: well done.
They put something of their own inside and buried it again.
/ They gave it to the museum, and their names are there today.
/ {A} kept the note for the rest of {his} life.

the snow
In the night it had snowed, and the world was white.
/ Snow lay on every roof.
/ When {A} looked out, {he} saw nothing but snow.
{A} and {B} built a snowman in the yard.
/ {A} pulled {B} up the hill on a sledge.
/ They threw snow at each other until they were out of breath.
They gave him a carrot for a nose and an old {cloth.1}.
/ The way down was fast, and they screamed with joy.
/ {B} made a snow {animal.1} with long ears.
Then the sun came out and it grew warm.
/ {A} lost a glove and could not feel {his} fingers.
/ A small {bird} sat there and shook with cold.
They gave the bird some crumbs.
/ They went inside to drink hot milk.
/ Their {relative} called them in for {food}.
The next day only the {cloth.1} was left.
/ {A} was sad, but {B} said that winter would come back.
/ They watched the white hills turn {colour} in the evening.

the broken vase
{A} and {B} played with a ball inside the house.
/ {A} was told not to run in the house.
/ The {adj.1} vase of {his} {relative.1} stood near the door.
The ball hit the vase, and it broke.
/ {A} turned too fast, and the vase fell.
/ There was a loud crash.
"Nobody saw it," said {B}.
/ {A} wanted to hide the pieces.
/ They both stood still and looked at the floor.
But {A} felt {feeling}.
/ {A} could not eat {his} supper.
/ In the night {A} thought about it again and again.
In the morning {he} told the truth.
/ "It was me," {he} said {adverb}.
/ {He} went to {his} {relative.1} and said sorry.
{His} {relative.1} was not angry for long.
/ "Thank you for telling me," said {his} {relative.1}.
/ Together they stuck the pieces with glue.
{A} felt light and free again.
/ Now the vase had {adj} lines, and {A} liked it even more.
/ After that they played outside.

the school play
The school was going to put on a play about a king and {a animal.1}.
/ {A} got the biggest part in the play.
/ "Who wants to be the king?" asked the teacher.
{A} learned the words by heart.
/ {B} made a crown out of {material}.
/ They practised every {time} for two weeks.
On the big day the hall was full.
/ {A} looked through the curtain and felt {feeling}.
/ Then the music started, and it became dark.
In the middle {A} forgot the words.
/ {B} stepped on the long cloak, and it tore.
/ The {animal.1} on the stage was real, and it ran away.
{B} whispered the first word, and it all came back.
/ {A} made a joke, and everyone laughed.
/ The teacher played a song until it was all right again.
At the end the people stood up and clapped.
/ The {job.1} said it was the funniest play of the year.
/ They bowed five times.

the river trip
{A} and {B} went on a trip along the river.
/ One {weather.1} {time} they rowed down the river in a small boat.
/ {His} {relative.1} took them to the river for the day.
They saw {a bird} standing in the water.
/ The water was clear, and they could see fish.
/ They stopped to eat {food} in the grass.
Then the boat hit a stone and water came in.
/ {A} dropped one oar, and it floated away.
/ They had gone so far that they did not know the way back.
{B} put {B.his} hat over the hole.
/ {A} used a branch as an oar.
/ "Follow the smoke, there must be a house," said {A}.
{a job.1} saw them and threw a rope.
/ Slowly they reached the other side.
/ An old {job.1} showed them the path.
By the evening they were back, wet and {feeling}.
/ They were home just before dark.
/ "Next time we will take two oars," said {B}.

the bird with the hurt wing
{A} found {a bird.1} that could not fly.
/ Under the {tree} sat {a bird.1} with a hurt wing.
/ {a bird.1} had hit the window and lay on the ground.
{A} picked it up {adverb}.
/ {He} put it in a box with soft wool.
/ "Poor thing," said {A}.
{B} knew what birds eat.
/ They gave it water and seeds.
/ The {job.1} looked at the wing and put a bandage on it.
For many days the {bird.1} did not move much.
/ Every day it grew a little stronger.
/ At night {A} kept the box beside {his} bed.
Then one {time} it stretched both wings.
/ After three weeks it hopped around the room.
/ One day it began to sing.
They carried it to the window and let it go.
/ {A} opened {his} hands, and it flew up into the sky.
/ It circled once above the house and was gone.
Sometimes it comes back and sits on the roof.
/ {A} was sad and {feeling} at the same time.
/ {B} said that it would never forget them.

the lazy day
{A} did not want to do anything at all.
/ It was too hot to move.
/ The clock went slowly, and {A} was bored.
{His} {relative.1} asked {him} to sweep the floor.
/ There were dishes to wash and wood to carry.
/ {B} wanted to play, but {A} only yawned.
"Later," said {A}.
/ {He} lay under the {tree} and closed {his} eyes.
/ {He} hid so that nobody would find {him}.
{a insect} landed on {his} nose.
/ Then {a fruit} fell on {his} head.
/ The {animal.1} licked {his} face.
{He} jumped up and could not be lazy any more.
/ {A} looked around and saw everyone at work.
/ {He} felt a little ashamed.
So {he} helped, and the work was done in an hour.
/ With two people it was almost fun.
/ {He} swept the floor so well that it shone.

the train journey
{A} was going to visit {his} {relative.1} in the city.
/ It was the first time that {A} travelled alone.
/ {A} and {B} had tickets to the sea.
The station was full, and a man blew a whistle.
/ {He} found a seat by the window.
/ They bought {food} and a newspaper for the journey.
Fields and houses flew past.
/ They counted {animal}s through the window.
/ An old {job.1} told them about the war.
{A} fell asleep and missed the stop.
/ Then the ticket was gone.
/ In the middle of nowhere they stopped, because {a animal.1} stood on the line.
The {job.1} was kind and helped {him}.
/ It was in {his} shoe all the time.
/ They had to wait, so everybody shared food.
{His} {relative.1} was waiting with open arms.
/ In the evening they saw the sea for the first time.
/ "You are late, but you are here," said {his} {relative.1}.

the proud animal
{a animal.1} and {a bird.1} lived beside the {town}.
/ There was once {a animal.1} who was very proud.
/ {A} liked to tell this story about {a animal.1}.
"I am the most beautiful of all," said the {animal.1}.
/ The {animal.1} never shared its {food}.
/ Every day the {animal.1} looked at itself in the water.
The {bird.1} only smiled.
/ "Beauty does not fill your stomach," said the {bird.1}.
/ The other animals were tired of it.
One day the {animal.1} fell into a hole.
/ Then a hard winter came, and there was no food.
/ One {time} hunters came with dogs.
It called for help, but nobody came.
/ The {animal.1} was {feeling} and alone.
/ Only the {bird.1} heard it cry.
The {bird.1} told the others, and together they pulled it out.
/ The {bird.1} showed it a safe place to hide.
/ The {bird.1} shared its last seeds.
From then on the {animal.1} was kind to everyone.
/ The {animal.1} said sorry and meant it.
/ "Thank you," said the {animal.1}, and it was the first time.

the kitchen helper
{A} worked in the kitchen of {a job.1}.
/ Every {time} {A} helped {his} {relative.1} to cook.
/ The kitchen was warm and smelled of {food.1}.
Today they were making {food.1} for forty people.
/ {A} peeled and chopped and stirred.
/ {He} washed the plates and dried the spoons.
{He} tasted the soup and made a face.
/ There was no more salt in the house.
/ The pot boiled over and put out the fire.
{B} ran to the shop and back.
/ {A} added {a fruit} and some pepper.
/ "Never mind, everyone makes mistakes," said the cook.
The guests ate everything and asked for more.
/ One guest said it was the best {food.1} of his life.
/ In the end not one spoon was left.
{A} was {feeling} and very tired.
/ The cook gave {A} a tall white hat.
/ Afterwards they sat down and ate {food} themselves.

the music
{A} heard music coming from an open window.
/ {A} wanted to learn to play.
/ In the street stood a man who played the violin.
{He} listened until it was dark.
/ {He} saved money for a whole year.
/ {His} {relative.1} said that music was only noise.
{B} lent {him} an old instrument.
/ The {job.1} gave {him} a lesson every {day}.
/ At first it sounded like an angry {animal.1}.
{A} practised until {his} fingers were sore.
/ The neighbours closed their windows.
/ Slowly the sounds became a tune.
Then came the concert in the {town}.
/ One {time} {he} played in front of everybody.
/ {B} asked {him} to play at the wedding.
It was so beautiful that some people cried.
/ When {he} stopped, nobody moved.
/ Even the {bird}s were silent.
{His} {relative.1} was the first to clap.
/ {A} bowed and smiled.
/ "That was not noise," said {his} {relative.1}.

the fishing day
{A} and {B} got up before sunrise to go fishing.
/ {His} {relative.1} had promised to take {A} fishing.
/ The lake was as smooth as a mirror.
They sat without a word and waited.
/ {B} put bread on the hook.
/ For hours nothing happened.
Suddenly the line went tight.
/ Then {A} felt a strong pull.
/ The rod bent until it nearly broke.
They pulled together with all their strength.
/ {A} almost fell into the water.
/ "Hold on!" shouted {B}.
It was only an old boot.
/ It was a huge {adj} fish with {colour} spots.
/ Up came a bottle with a message inside.
They laughed so much that the boat rocked.
/ {A} looked at it and then let it go.
/ They showed it to everyone in the village.

the moon
{A} asked {his} {relative.1} how far away the moon was.
/ One night the moon was round and very near.
/ "I would like to visit the moon," said {A}.
{B} said that nobody could jump so high.
/ "Very far," said {his} {relative.1}, "but you can always look."
/ They lay on the grass and looked up.
{A} built a rocket out of boxes and {material}.
/ {He} drew a map of the sky.
/ {He} counted the stars, but there were too many.
That night {he} dreamed that {he} was flying.
/ In the dream a silver {animal.1} carried {him} up.
/ {He} closed {his} eyes and floated away.
The moon was cold and made of {food.1}.
/ Up there everything was quiet and white.
/ {He} could see the whole earth, small and blue.
When {he} woke up, there was dust on {his} shoes.
/ In the morning {he} told {B} every detail.
/ {He} was glad to be back in {his} warm bed.

the library book
{A} borrowed a thick book about {animal.1}s.
/ The librarian gave {A} a book with {a colour} cover.
/ {A} loved books more than {food}.
{He} read it under the blanket all night.
/ {He} read the first page and could not stop.
/ It was about {a job.1} who sailed around the world.
Then it rained, and the book got wet.
/ When it was time to give it back, the book was lost.
/ The {animal.2} chewed the last page.
{A} was {feeling} and did not know what to do.
/ "We will look for it together," said {B}.
/ {He} counted the coins in {his} pocket.
{He} went to the librarian and told her everything.
/ They searched under every chair.
/ {He} wrote the last page again from memory.
The librarian smiled and said it could happen to anyone.
/ It was in the bag all the time.
/ For a week {A} helped to clean the shelves, and that paid for it.

the bee
{a insect.1} flew into the room and could not get out.
/ {B} was afraid of the {insect.1} on the window.
/ A small {insect.1} sat on the bread.
"Do not hurt it," said {A}.
/ {B} wanted to hit it with a newspaper.
/ It flew against the glass again and again.
{A} took a cup and a piece of paper.
/ {A} opened all the windows.
/ They sat very still and waited.
{He} caught it {adverb} and carried it out.
/ In the end it found the way by itself.
/ It walked onto {his} hand.
It flew straight to the {flower}s.
/ Outside it danced in the sun.
/ It turned around once, as if to say thank you.
{B} was not afraid any more.
/ The next summer there was honey for everyone.
/ "Small things matter too," said {A}.

the lighthouse
The {job.1} lived alone in a lighthouse.
/ {A} spent the summer on a small island.
/ From the window {A} could see the lighthouse.
Every night the lamp had to be lit.
/ There were two hundred steps to the top.
/ Ships passed by, day and night.
One {weather} night the {job.1} fell ill.
/ Then fog came down, and no one could see the rocks.
/ That evening the lamp would not burn.
{A} climbed up with a box of matches.
/ {A} and {B} carried oil up the stairs.
/ "A ship is coming!" cried {B}.
At the last moment the lamp shone over the sea.
/ {A} rang the old bell as hard as {he} could.
/ They held up every lantern they had.
The ship turned and was safe.
/ The captain came to thank them.
/ In the morning the sailors brought {food} and {fruit}s.
""".strip()

# ------------------------------------------------------------------------------------------- words with two senses
# A header line `word sense`, then frames in which `<word>` (or a form of it) has that sense, fixed by its context.
SENSES = """
bat animal
at dusk a <bat> flew out of the cave and hunted moths over the trees.
{A} saw a <bat> hanging upside down from a beam, fast asleep with folded wings.
"Look, a <bat>!" whispered {B}, as something with thin wings flew past the moon.
a family of <bats> lived in the dark church tower and came out only at night.
bat club
{A} swung the <bat> and hit the ball over the fence.
{B} could not play, because the wooden <bat> had a crack in its handle.
"It is my turn to hold the <bat>," said {A}, and {B} threw the ball.
bank river
{A} sat on the <bank> and put {his} feet in the cool river.
the boat was pulled up on the muddy <bank>, just above the water.
they walked along the <bank> of the stream and looked for frogs.
bank money
{A} took {his} savings to the <bank>, and a clerk counted the coins.
the <bank> was closed, so {B} could not get any money.
{His} {relative} worked at the <bank> and wrote numbers in a thick book.
ring jewel
the {job} lost a gold <ring> with a red stone, and {A} found it in the grass.
{A} tried the silver <ring> on every finger, but it was too big.
at the wedding the smallest child carried the <ring> on a cushion.
ring sound
{A} heard the bell <ring> and ran to school.
"Did the telephone <ring>?" asked {B}. "No, it was the clock," said {A}.
the doorbell began to <ring> and would not stop.
light lamp
{A} turned on the <light>, because the room was dark.
far away they saw a <light> in a window, bright and yellow.
the <light> of the candle danced on the wall.
light weight
the box was so <light> that {A} could lift it with one hand.
"This bag is <light>," said {B}. "There is nothing heavy in it."
a feather is <light>, and the wind carried it over the roof.
match fire
{A} struck a <match> and lit the candle.
only one <match> was left in the box, and the fire had gone out.
{B} held the burning <match> too long and blew on {B.his} fingers.
match game
on {day} there was a football <match>, and the whole village came to cheer.
their team lost the <match> by two goals to three.
after the <match> the players shook hands with the other team.
bark tree
the <bark> of the old {tree} was rough under {his} hand.
a beetle hid beneath the <bark> of the dead trunk.
{A} peeled a strip of <bark> from a fallen branch and wrote on it.
bark dog
the dog gave a loud <bark> when a stranger came to the gate.
{A} heard a <bark> and knew that the puppy was awake.
"Your dog has a terrible <bark>," said the postman and stepped back.
wave sea
a big <wave> rolled up the beach and washed the sandcastle away.
the ship went up and down on every <wave> of the stormy sea.
{A} jumped over a <wave>, and the salt water went into {his} nose.
wave hand
with a <wave> of {his} hand {A} said goodbye to the captain.
{B} gave a friendly <wave> from the window, and {A} lifted {his} arm too.
the queen greeted the crowd with a <wave> and a smile.
park place
they went to the <park> to feed the ducks and sit on the benches.
in the <park> there were wide lawns, swings and a fountain.
an old man swept the paths of the <park> every morning.
park car
{His} {relative} could not find a space to <park> the car.
"You must not <park> your van in front of the gate," said the policeman.
the driver had to <park> the bus behind the station.
watch clock
{A} looked at {his} <watch>. It was ten minutes past four.
the old <watch> had stopped ticking, so the watchmaker opened it.
{His} {relative} wore a <watch> with a leather strap.
watch look
{A} and {B} sat down to <watch> the clouds go by.
"Come and <watch> the fireworks with us!" called {B}.
cats like to <watch> birds through the window.
trunk tree
{A} leaned against the <trunk> of the {tree} and looked up into its branches.
the storm had split the thick <trunk> from the top to the roots.
somebody had cut two names into the <trunk> of the old {tree}.
trunk elephant
at the zoo the elephant took the bread from {A} with its <trunk>.
the elephant lifted its <trunk> and sprayed water on everybody.
a baby elephant held its mother's tail with its little <trunk>.
nail metal
{A} hit the <nail> with a hammer and hung the picture on it.
a rusty <nail> stuck out of the board and tore {his} {cloth}.
the carpenter held a <nail> between his lips while he measured the wood.
nail finger
{A} had broken a <nail> on {his} left thumb, and it hurt.
{B} painted every <nail> on {B.his} hand a different colour.
there was dirt under each <nail>, so {A} washed {his} fingers again.
spring season
in <spring> the snow melted and the first flowers opened.
after the long winter, <spring> came with rain and young lambs.
{His} {relative} planted peas every <spring>, when the frost was over.
spring coil
a metal <spring> jumped out of the clock and rolled across the floor.
the old bed had a broken <spring> that squeaked.
{A} pressed the coiled <spring> together and let it jump.
fall autumn
that <fall> the maples turned red, and the days grew short.
every <fall> the geese flew south before the first frost.
school began again in the <fall>, when the summer was over.
fall drop
"Be careful on the ladder, or you will <fall>!" cried {B}.
{A} had a bad <fall> from a horse and broke {his} arm.
{B} saw the cup <fall> from the table and break.
letter mail
the postman brought a <letter> in a white envelope for {A}.
{A} wrote a long <letter> to {his} {relative} and put a stamp on it.
the <letter> had travelled for three weeks across the sea.
letter alphabet
the first <letter> of the alphabet is easy to write, said the teacher.
{B} forgot one <letter>, so the word was spelled wrong.
{A} drew a big <letter> on the board and read its sound aloud.
glass drink
{A} drank a <glass> of cold milk.
{B} filled each <glass> with lemonade and set it on the tray.
"May I have a <glass> of water?" asked {A}. "I am thirsty."
glass material
the windows of the greenhouse were made of <glass>.
a stone hit the shop, and broken <glass> lay on the street.
the man blew hot <glass> into the shape of a swan.
leaves tree
in autumn the <leaves> turned yellow and dropped from the branches.
{A} raked the dry <leaves> into a heap, and {B} jumped into it.
a caterpillar ate holes into the green <leaves> of the cabbage.
leaves go
the last bus <leaves> at six, so they had to hurry.
"When {B} <leaves>, I am always sad," said {A}.
every morning {his} {relative} <leaves> the house before sunrise.
duck bird
a <duck> swam across the pond with six little ones behind her.
the <duck> shook its feathers and quacked.
{A} threw crumbs to a brown <duck> in the reeds.
duck bend
the door was so low that {A} had to <duck> {his} head.
"<Duck>!" shouted {B}, and a snowball flew past.
tall people must <duck> when they go down the cellar stairs.
fly insect
a <fly> buzzed around the jam and sat on the spoon.
the spider caught a <fly> in its web.
{A} chased the <fly> off the cheese with a napkin.
fly air
one day {A} wanted to <fly> like an eagle, high above the hills.
the young birds learned to <fly> from branch to branch.
airplanes <fly> over the house on their way to the city.
rock stone
{A} climbed on a big <rock> and looked over the valley.
a heavy <rock> blocked the path, and nobody could move it.
the lizard lay on a hot <rock> in the sun.
rock sway
{A} began to <rock> the cradle, and the baby fell asleep.
grandmother liked to <rock> in her chair in front of the fire.
"Sit still and do not <rock> the boat!" said {B}.
kind nice
the {job} was <kind> and gave them some {food} for nothing.
"You are very <kind>," said {B} and shook {his} hand.
{A} was <kind> to every animal, even to the spiders.
kind sort
"What <kind> of tree is this?" asked {A}. "{a tree}," said {B}.
the shop sold every <kind> of cheese in the world.
it was a strange <kind> of bird, with a beak like a spoon.
right side
{A} held the rope in {his} <right> hand and the lamp in {his} left.
"Turn <right> at the church, not left," said the {job}.
the road to the <right> went down to the harbour.
right correct
"That is the <right> answer!" said the teacher, and wrote a star beside it.
{A} counted again, and the number was <right>.
"You were <right>, and I was wrong," said {B}.
left side
the house stood on the <left> side of the road, across from the mill.
{A} writes with {his} <left> hand, and {B} with the other.
"Look <left> and right before you cross," said {his} {relative}.
left went
{A} had <left> {his} {cloth} at school and had to go back for it.
when everybody had <left>, the hall was silent.
the ship <left> the harbour at dawn and was gone for a year.
well water
{A} let the bucket down into the <well> and pulled up cold water.
the old <well> in the yard was deep, and a stone took long to reach the bottom.
in summer the <well> ran dry, and they fetched water from the river.
well good
"You sing very <well>," said the teacher to {B}.
{A} had slept <well> and was ready for anything.
the two sisters got on <well> and never quarrelled.
saw tool
the carpenter cut the board with a <saw>.
the <saw> was sharp, and its teeth went quickly through the wood.
"Hand me the <saw>, this branch is too thick for the knife," said {B}.
saw see
from the hill {A} <saw> the whole village.
when {B} <saw> the cake, {B.he} could not believe {B.his} eyes.
{A} <saw> a falling star and made a wish.
can tin
{B} opened a <can> of beans and heated them over the fire.
an empty <can> rolled down the street with a noise.
they kicked an old <can> in place of a ball.
can able
"I <can> swim to the other side," said {A}, and {he} did.
"<Can> you help me?" asked {B}. "Of course," said {A}.
a mole <can> dig a tunnel in one night.
train rail
the <train> stopped at the station, and many passengers got out.
{A} watched the <train> roll over the bridge, one carriage after another.
the engine of the <train> blew white smoke into the sky.
train teach
{A} tried to <train> the dog to sit, but it only wanted the biscuit.
runners must <train> every day if they want to be fast.
it takes a year to <train> a young horse.
fan cooler
the <fan> turned round and round and made a cool wind in the hot room.
the dancer hid her face behind a paper <fan>.
{B} switched on the <fan>, because it was too hot to sleep.
fan admirer
{B} was a <fan> of the football team and knew the name of every player.
a <fan> asked the singer to sign her hat.
{A} is the biggest <fan> of the circus and goes to every show.
seal animal
a <seal> lay on the ice and clapped its flippers.
the <seal> dived under the boat and came up with a fish.
at the zoo the <seal> could balance a ball on its nose.
seal wax
the king pressed his <seal> into the hot red wax.
{A} broke the <seal> on the envelope and read the secret message.
the old paper had a <seal> with a lion at the bottom.
pen ink
{A} dipped the <pen> in ink and wrote {his} name.
the <pen> was empty, so {B} finished the letter with a pencil.
"Sign here," said the clerk and handed {A} a <pen>.
pen fence
the pigs broke out of their <pen> and ran into the corn.
{A} shut the lambs in the <pen> for the night.
the farmer built a wooden <pen> for the new goats.
star sky
the first <star> shone above the roofs, and the sky turned black.
a sailor showed {A} the <star> that always stands in the north.
one <star> was brighter than all the others that night.
star actor
the <star> of the film waved from a long black car.
everybody wanted to see the <star>, and the theatre was full.
{B} dreamed of being a famous <star> on the stage.
crane bird
a tall <crane> stood on one leg in the marsh and caught a frog with its beak.
the <crane> spread its grey wings and flew to its nest.
each autumn the <cranes> called high in the sky on their way south.
crane machine
a yellow <crane> lifted the steel beams to the top of the new house.
the driver of the <crane> sat high above the harbour and moved the heavy boxes.
they watched the <crane> put the bell back into the tower.
mouse animal
a <mouse> ran out of its hole and stole the cheese.
the cat waited for the <mouse> behind the flour sack.
a little grey <mouse> had made its nest in the old boot.
mouse computer
{A} moved the <mouse> and clicked on the picture on the screen.
the computer did not work, because its <mouse> was not plugged in.
{B} bought a keyboard and a <mouse> for the new computer.
note paper
{A} left a <note> on the door: back at five.
{B} passed a folded <note> to {A} during the lesson.
there was a <note> in the bottle, written in pencil.
note music
the singer held the last <note> for a long time.
{A} played a wrong <note> on the piano, and everyone heard it.
the song began with a low <note> and ended with a high one.
palm tree
a monkey sat in the <palm> and threw down a coconut.
on the beach there was one tall <palm>, and they rested in its shade.
the <palm> bent in the warm wind of the island.
palm hand
{A} held the tiny frog in the <palm> of {his} hand.
a woman read the lines in the <palm> of {B} and told {B.him} the future.
the coin lay in {his} open <palm>.
pitcher jug
the <pitcher> was full of cold lemonade, and {A} poured some for everyone.
{B} dropped the clay <pitcher>, and the milk ran over the floor.
a blue <pitcher> of water stood beside the plates.
pitcher player
the <pitcher> threw the ball so fast that nobody could hit it.
{A} was the best <pitcher> in the team and had a strong arm.
the crowd shouted when the <pitcher> struck out the last player.
point tip
the <point> of the pencil broke, and {A} sharpened it.
the needle has a sharp <point>, so be careful.
at the <point> of the spear sat a little flag.
point score
{B} scored a <point>, and now the game was even.
they needed only one more <point> to win.
"That is a <point> for our side!" shouted the players.
present gift
{A} wrapped the <present> in blue paper and tied a bow around it.
under the tree lay a <present> with the name of {B} on it.
for {his} birthday {A} got a <present> that was bigger than {him}.
present here
"Is everyone <present>?" asked the teacher, and counted the children.
only three of the twelve children were <present>, because the rest were ill.
{B} was not <present> at the meeting, so nobody asked {B.him}.
rose flower
a red <rose> grew beside the door, and its thorns were sharp.
{A} smelled the <rose> and put it in a vase.
the gardener cut one white <rose> for the bride.
rose went up
the sun <rose> over the hills, and the cock crowed.
smoke <rose> from the chimney into the cold air.
when the king came in, everybody <rose> from their chairs.
swing seat
{A} sat on the <swing> under the oak, and {B} pushed.
the <swing> in the playground hung from two chains.
after school they took turns on the <swing>.
swing move
the monkeys <swing> from branch to branch.
{A} had to <swing> the axe three times before the log split.
"Do not <swing> your legs at the table," said {his} {relative}.
tie clothing
{His} {relative} wore a striped <tie> and a white shirt.
the waiter had a black <tie> around his neck.
{A} put on a <tie> for the photograph and could hardly breathe.
tie bind
"Please <tie> the boat to the post," said the captain.
{A} was four when {he} learned to <tie> {his} shoes.
they had to <tie> the sack with a piece of string.
top toy
{A} made the <top> spin on the floor until it hummed and fell over.
the painted <top> was the favourite toy of {B}.
a wooden <top> spins best on a smooth table.
top summit
they reached the <top> of the mountain before noon.
from the <top> of the tower the people looked like ants.
the cat sat at the <top> of the tree and could not come down.
yard garden
the hens ran about in the <yard> behind the farmhouse.
{A} swept the <yard> and fed the chickens.
the children played in the <yard> until it was dark.
yard length
the tailor measured one <yard> of blue cloth and cut it.
the rope was a <yard> too short to reach the boat.
the snow lay a <yard> deep, and no one could open the door.
bow ribbon
{B} tied her hair with a pink <bow>.
the kitten had a silk <bow> around its neck.
the ribbon on the parcel made a big <bow>.
bow weapon
the hunter bent his <bow> and shot an arrow into the target.
{A} made a <bow> from a stick and a string, and three arrows.
Robin Hood was famous for his <bow> and his arrows.
deck ship
the sailors scrubbed the <deck> of the ship until it shone.
{A} stood on the <deck> and looked at the waves.
when the storm came, everyone left the <deck> and went below.
deck cards
{B} shuffled the <deck> and gave everyone five cards.
there was a queen missing from the <deck>, so they could not play.
the wizard asked {A} to draw one card from the <deck>.
horn animal
the goat had a broken <horn>, but it still liked to fight.
the bull scratched the gate with one <horn>.
a rhino has a <horn> on its nose.
horn sound
the driver blew the <horn>, and the sheep ran off the road.
{A} heard the <horn> of a ship in the fog.
the guard played a long note on his <horn>.
story tale
{His} {relative} told a <story> about a dragon who was afraid of fire.
"Tell us a <story> before we sleep," said {B}.
the book had one <story> for each day of the year.
story floor
the house had only one <story>, but a very high roof.
their room was on the second <story>, and the lift was broken.
each <story> of the tall tower had four windows.
""".strip()

# Forms of the words above that are not the word itself.
FORMS = {"bats": "bat", "cranes": "crane"}

# ------------------------------------------------------------------------------------------------------------- facts
# Each kind: how the fact is told (one frame a line), how the story comes back to it, the question, the answer.
# {X} is what is asked about, {V} the value to remember; `[[...]]` is the span that answers.
FACTS = {
    "where": dict(
        lead="""{A} and {B} had tidied up that morning.
There were many things to put away.
{A} knew where everything was.
Before they went out, everybody put something away.
The house was never tidy, but {A} always knew where to look.
{B} helped {A} to put the toys away.
Everything had its own place.""",
        tell="""{A} put the {X} {V}.
The {X} was {V}.
{A} left the {X} {V}.
{B} hid the {X} {V}.
{B} put {his} {X} {V}.
The {adj} {X} lay {V}.
{A} kept the {adj} {X} {V}.
{B} had forgotten the {X} {V}.
There was {a adj} {X} {V}.
Somebody had left the {X} {V}.""",
        back="""{A} wanted the {X}. {He} remembered that it was {V}.
"Where is the {X}?" asked {B}. "It is {V}," said {A}.
In the evening {A} looked for the {X}, and there it was, {V}.
{B} needed the {X}, so {A} went to get it. It was still {V}.
"I cannot find my {X}," said {A}. "Did you look {V}?" asked {B}.""",
        ask="Where is the {X}?|Where was the {X}?|Can you tell me where the {X} is?|Where can I find the {X}?",
        answer="The {X} is {V}."),
    "who has": dict(
        lead="""There were presents for all the children.
The other children had brought their things.
The {job} gave every child something.
Three cousins came to visit, and each had brought something.
Everyone was allowed to choose one thing.""",
        tell="""{V} had the {X}.
{V} carried {a adj} {X}.
{V} got the {X}.
The {X} belonged to {V}.
{V} chose the {X}.
{V} held {a adj} {X}.
The {adj} {X} went to {V}.
{V} brought {a X}.""",
        back=""""Who has the {X}?" asked {A}. "{V} has it," said {B}.
{A} wanted to see the {X}, so {he} went to {V}.
{B} remembered that the {X} belonged to {V}.
Then {A} asked {V} for the {X}.""",
        ask="Who has the {X}?|Who had the {X}?|Do you know who has the {X}?",
        answer="{V} has the {X}."),
    "colour": dict(
        lead="""{A} had a box of paint.
They painted everything that they could find.
Nothing here was grey or plain.
{A} loved colours, and {B} did too.
In the shop window everything had its own colour.""",
        tell="""The {X} was {V}.
{A} painted the {X} {V}.
There was {a V} {X}.
{B} had {a V} {X}.
The new {X} was {V}.
{A} liked the {V} {X} best.
They made the {X} {V}.""",
        back="""{A} still thought of the {V} {X}.
"What colour was the {X}?" asked {B}. "It was {V}," said {A}.
{A} took the {X}. How {V} it was!
{B} drew the {X}, and of course {B.he} drew it {V}.""",
        ask="What colour is the {X}?|What colour was the {X}?|Which colour does the {X} have?",
        answer="The {X} is {V}."),
    "called": dict(
        lead="""There were many animals on the farm.
The animals all had names.
{A} loved animals, and so did {his} {relative}.
Next door lived several animals.""",
        tell="""The {X} was called {V}.
There was {a X} called {V}.
{A} had {a X} named {V}.
{B} had {a adj} {X} called {V}.
The {X} had the name {V}.
The old {X} was called {V}.
"Come here, {V}!" said {B} to the {X}.""",
        back=""""What is the {X} called?" asked a child. "{V}," said {A}.
{A} called the {X}: "{V}! {V}!"
In the evening {A} fed the {X}. "Good night, {V}," {he} said.""",
        ask="What is the {X} called?|What is the name of the {X}?|What was the {X} called?",
        answer="The {X} is called {V}."),
    "ate": dict(
        lead="""At noon everybody was hungry.
They all sat down at the long table.
There was plenty to eat.
Everybody had brought something to eat.""",
        tell="""{X} ate {V}.
{X} had {V} for lunch.
{X} chose the {V}.
{X} ate a big plate of {V}.
{X} wanted only {V}.
{V} was all that {X} ate.""",
        back="""{X} was still full of {V}.
"What did {X} eat?" asked {B}. "{V2}," said {A}.
{X} said that the {V} had been very good.""",
        ask="What did {X} eat?|What did {X} have to eat?|What was eaten by {X}?",
        answer="{X} ate {V}."),
    "went": dict(
        lead="""The other children had plans of their own.
It was a busy day for everyone.
Nobody stayed at home that day.
Then they all said goodbye and went different ways.""",
        tell="""{X} went to the {V}.
{X} walked to the {V}.
{X} took the bus to the {V}.
{X} had to go to the {V}.
{X} ran to the {V}.
{X} rode to the {V} on a bicycle.""",
        back="""{X} came back from the {V}.
"Where did {X} go?" asked {B}. "To the {V}," said {A}.
{A} remembered that {X} had gone to the {V}.""",
        ask="Where did {X} go?|Where has {X} gone?|Where did {X} go that day?",
        answer="{X} went to the {V}."),
    "when": dict(
        lead="""There was a lot to look forward to.
It was a busy week in the village.
{A} wrote everything in the calendar.""",
        tell="""The {X} was on {V}.
The {X} would be on {V}.
On {V} there was {a X}.
Everybody was waiting for {V}, the day of the {X}.
They all went to the {X} on {V}.""",
        back="""{A} counted the days until {V}, because of the {X}.
"When is the {X}?" asked {B}. "On {V}," said {A}.
{B} asked about the {X}. "It is on {V}," said {A}.""",
        ask="When is the {X}?|When was the {X}?|On which day is the {X}?",
        answer="The {X} is on {V}."),
    "count": dict(
        lead="""{A} liked to count things.
They counted everything they saw.
{B} had learned to count up to ten.""",
        tell="""There were {V} {X}.
{A} counted {V} {X}.
{B} saw {V} {X}.
There were {V} {X} in a row.
{A} had {V} {X}.
They found {V} {X}.""",
        back="""{A} counted the {X} again. There were {V} of them.
"How many {X} were there?" asked {B}. "{V2}," said {A}.
{A} thought of the {V} {X}.""",
        ask="How many {X} were there?|How many {X} are there?|What was the number of the {X}?",
        answer="There were {V} {X}."),
}

# Counting up and down: {N} at first, {M} come or go, {V} in the end.
MORE = """There were {N} {X}. Then {M} more came, and now there were {V}.
{A} had {N} {X}. {B} gave {him} {M} more. That made {V} {X}.
{A} counted {N} {X}, and {B} counted {M} more. Together there were {V} {X}.
They found {N} {X} in the grass and {M} under the hedge, so they had {V}.""".splitlines()
FEWER = """There were {N} {X}. Then {M} went away, and only {V} were left.
{A} had {N} {X}. {He} gave {M} of them to {B} and kept {V}.
{A} had {N} {X}, but {he} lost {M}. Now {he} had {V} {X}.
There were {N} {X} on the table. {B} took {M}, and {V} were left.""".splitlines()
SUM_ASK = "How many {X} were there in the end?|How many {X} are there now?|How many {X} were left at last?"
SUM_ANSWER = "In the end there were {V} {X}."

# ------------------------------------------------------------------------------------------------------------- talk
SYSTEM = """You answer questions about stories.
Answer in one short sentence.
You are a friendly storyteller.
Use plain words.""".splitlines()
REQUESTS = """Tell me a story about {A} and {B}.
Please tell me a story about {A}.
Tell me a story about {A} and the {X}.
Can you tell me a story?
I would like to hear about {A} and {B}.
Write a short story about {A}.
Tell me something about {A}.""".splitlines()
THANKS = """Thank you!|You are welcome.
That was nice.|I am glad that you liked it.
Thanks, that is all.|You are welcome. Goodbye!
Goodbye!|Goodbye! Sleep well.""".splitlines()
ABOUT_ASK = "Who is the story about?|Who is in the story?|Who were the two friends?"
ABOUT_ANSWER = "The story is about {A} and {B}."
BEFORE = """Here is a story.
Listen to this story.
Read this story and answer my question.
I have a story for you.
""".splitlines()
NUMBERS = _list("zero one two three four five six seven eight nine ten eleven twelve")
