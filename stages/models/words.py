"""What the tiny tokenizer learns from."""

WORDS = """
the a to of and in for is at he I table on it that was she columns by many with as her his add be
find you me are playlist book from had out has have they this there each but weather give all did
said like when were much him want one will time season so not than up an number my does playing
them more day some would need music get two air people per can called their total if viewers do
into put see series times old after who episode now no little then three which go first went could
only half what every make long very money going reservation take hours cost over we been came week
before down or twice rating driver off left minutes eat about made party your days years away buy
engine place hour know back any home man other last well come good serves never hear new bought
water house another while just took being list year miles millions second must should code showing
again gave night how got looking where work its watch feet spot am needs costs mother great way
students school once third think saw gets amount thought something same four don't asked wants
takes pay red rest st through pounds next also nd too month million played food friends used spend
books here best upon store songs head himself right looked such sold found children father tree
white told room during apples remaining both read still th together around class length pieces set
buys search dog eyes full ever morning these child girls box onto own quite tell let say us price
end because run value ratio shall person less green always it's help enough look play fish heard
average might blue began friend sells brother young weeks nothing far hand girl life dollars
herself reservations five makes woman door episodes soon cookies spent even listen things pages
wife most beautiful cried players round thing boys awarded those knew highest sell our calculate
boxes named son answered able large car under sat inches won family appearance name whole face
dear poor boy big till since evening finale between use seen eggs without yet done better sister
may side marbles anything ran paid until game black world small minute width seemed brought member
trees felt men ate heart wish though ounces along added land keep stood that's altitude points
trip appointment sure says cards dogs daughter turned bag junior worth age given premiere movie
high gone fell wanted lost bed garden start vacancy making decided different against really speed
flowers wood today feel already everything credits hair candy manager hold bags six cars sea cat
tickets cut gold combined tall bring castle ten horse words lay meters shoes having goes bill rose
course organization foot show eats grew spends near uses yellow company square shirts gallons fire
deserves started dinner kind hands order pair paper save sent can't coming received local song
decides seats months walk part earn road least milk serving mind pound slices didn't youth weight
creativity love fewer caught light bread dozen cups cans moment gives scored distance shop
territory oranges top city live rate memory departure passed team among sun works change behind
voice maximum open ground king's longer games starting across taken currently style pencils whose
lived town animals fast nice suddenly kept bottles golden won't leave apple equal fever site
bottle drink wrote hard happy birthday country replied happened weighs deaths walked rather fourth
watched fine story ago master clothes returned park field farm held pretty sitting star pairs
trying try older window reached few running turn word group alone members ready getting altogether
picked ask runs chocolate forest giving birds leaves tank means cats sale others dead titles
period minimum care filled ice myself lady broadcast marriage fruit finish sleep flew selling
matter bars nor buying packs balls wind kitchen husband race drive aired cake carried death floor
continuous paint sort call hill tunes fill parents giant discount pack coffee indeed plant else
seconds lot contains opened dark afraid building women supposed reading mountain glad cannot isn't
score doing profit whom pie legs wide dioxide taking cup purchase ordered slot pull lunch dragon
perhaps believe bank he's somewhere collection earth working piece bear drew carry free plants jar
themselves brothers teams bills current dress ones brown living certain silver restaurant whether
later collected stop basket role there's cold seven ride became additional comes stay summer
listed artist quarter bird it'll sit entire snow receive beginning ball draw talk met maiden
saying instead tried often conditions lake double chairs mile hope saved job why inside worked
earned finished temperature balloons bus kids owner train roses cream river eight arms catch body
pool size cents however bad using actor pays point strange return stone church ticket gas everyone
wall wait laid short glass candies married visit travel reach palace butter middle farmer chance
sweet fall suppose business several wouldn't share couldn't cakes toys true gift pick afternoon
wild soda almost needed tea account equally above laughed followed cheese knows single guests
front cast possible write grow spring thinking she's sight walking doesn't drinks pens corn cap
customers break hot clean bit real mean teacher blocks standing shirt exactly meet baby chicken
sheep twenty outside eaten steps seasons send hundred seeds grass egg stopped genre weigh answer
cows rode sugar type tears sky owns student lovely competition inch items drove chickens you'll
you're doctor hall tired language deep citizenship throw yesterday either sales pants fly finally
spirit pies questions yard final late level hole broken flower walks yourself appeared houses
market chips service charges none past present close earns instrument except journey known fellow
wasn't spoke asleep strong covered orders led beads fear straight percentage seating previous
state stand sisters liked threw corner raise younger rows arrived wedding promised fair beans
following died ought speak flour viewing sand stamps construction pass art sum quarters certainly
please joy rain horses test drives wash starts eating cry plans colour theme speakers waiting step
seat wished agreed scale bright height breakfast rated row rooms winter fifth bowl pleased native
trouble move meal extra library frightened plays shore loved collect fit split nobody power wonder
born pocket phone sandwiches resolution become goal birth within dance quickly ring beside placed
mouse feed grown socks boat gate planted minor coat remained hung originally lives disk understand
script alphabet soft heavy win ship street bike feeling heads office juice neither wonderful ears
entered global remember letter ounce arm machine splendid apartment fat grade salary pink towards
although lying holds lose thank marry meat page area driving active watching terrible die pond
complete seem iron rent cook hungry sorry sound orange father's warm wolf initial talking island
station whats dropped actress yards cover forth favorite broke empty shook purple clear bananas
wings weekend mouth troll meant case difference degrees youngest theater falls schools early
scheduled thus puts nearly band villages whatever arrangement coins vote forward bride chair deal
fresh forgot dressed dad votes expected savings laugh traveled original partners ended adds
structure awful ducks itself served magic stones shopping rural cross neck charge storm gifts bake
candles eye cow further plates exclaimed credit hardly animal color tail card handsome toward
slowly everybody fruits naturally likes remain involved war strawberries glasses sometimes beach
gear sad path walls bottom details increased jump twelve letters rounds daily space idea roof
locate view truck potatoes temps nine holding continued raised located picks writing wear dreadful
mass cell looks form neighborhood finds safe achieve hurt estimate low fight interest rope village
anywhere pulled sticks soul female dolls toy angry grocery news wrong shut breath larger jelly pet
sees candidates residence forget divided court invited classes nuts allowed adult decide reads
jumped dry creature bucket plan effects line wore dish produce you've supplies noticed presently
colors worse build showed club seems pot baseball wheels vacation rock growing we'll bridge human
quiet mice wine dishes appear bar smallest changed dream stars easy stick heaven sets built supper
duck ill sides sandwich promise election moved pig wondering below cuts football seeing fee
attended stairs tables capacity shells wise lie anyone sick usual vegetables unit likely fun fence
receives hat goose struck blow question serve hit customer you'd beyond truth saving released
bones planning pleasant they're section regular surprised moon monkey factory bell particular
including beauty entitled tone windows hats climbed groups laughing kingdom begin begged nose
wooden oil mine shining background hare pictures floors slice lawn waited woods carrying title
ages motive future hunting project online fetch package due meeting smaller lift busy soup rich
counted leg teeth happen carefully east prepared learn paying shown brings drank reason schedule
parts center concert rolled spots gentleman frequency manner learned puppies written grandmother
tax grey smile cherry neighbor riding plus velocity characters putting branches proud flying
fishing cousin popular plain dresses painting rabbit pleasure morrow sons pale hadn't daughters
tied bracelets bigger crying silk bedroom cleaning match escape rocks drop noise declared strength
pigs experience hills special license hen photos places fields spite figure tip seated records
brave guess soldier doubt feathers whispered managed goats shelter offered listened dreams carrots
sheets immediately attend bow telling expensive gray district loves danced college singing grave
block higher imagine meals board fact stayed lasts taller maid compared manage mother's watches
stove faster history expenses expect trips alive stock contain packages silence therefore surely
tower batch calls traveling largest population taxes evil seized welcome washed tomorrow nights
muffins fond courage leaf remembered shot forgotten disappeared base count evenly climb dare
talked sighed frogs colored bush tie swimming sooner study shape discovered rabbits thick practice
beat lips purchased skin wheel lemonade fortune bathroom notebooks haven't recipe countries lonely
royal stranger farther spread hotel follow deliver chief nurse suit necklaces picture drops ladies
smiled sudden fox delivery positions bears knife plenty dimes shone burst event rushed turning
stepped magician planes flat travels tiny washing soldiers shared load sang passing triple clouds
surprise increase thousand newest dancing prize throws leaving taker allowance orchard insurance
rice beef pen problems settlements shows copy precious berries cave greatest numbers remainder
nest loud edge ups deer crab stable baked doors normal ugly kettle paintings pain gathered ear law
string fills guest record touched someone pencil pumpkin join easily tongue perfectly post losing
spell delighted sir contained stories silent harvest joined determined sprang lamp peanut fancy
marks stuffed realized baking roll seed dots cart harm thoughts training faithful offers bye
thirty spare slept turtles science direction whenever kinds bakes wearing hunt flight donuts
presents reports unless boots doubles baskets accommodate piggy pile fairy pets salad slipped
notice caused choose fabric balloon comfort crackers crept pots rained coach saves sharp
passengers wept affected kittens horrible lines clothing enjoy male finger enter asking shorter
peace latter honey desire track charity tennis grows perfect fallen duty cases dollar towels
especially lifted hits rolls knocked donated camp chocolates groceries cause sing lower fingers
servants closed merry thrice hanging kissed pity thinks lessons catches sleeping tires anybody
snake goldfish loaves beneath stuff proper admit bushes brook beds luck unhappy secret greatly
aside buried man's condition lights delight tiles stream folks couple loses bringing thrown
spirits via kindly swim happiness stack farewell counting peaches families buttons clever advice
collecting obliged vain newspaper helped hearts army quick remarked opinion matches hurry caps
blew teach earnings hut anxious submitted usually mirror classroom
"""
"""Common English words, the most frequent first."""
