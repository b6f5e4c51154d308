-- Look at both ends of some lists, where messages wait, without taking anything.
-- KEYS: lists. ARGV: most messages from either end of a list, most bytes to read, longest message.
-- Returns for each list: its length, the oldest messages, the newest of the rest; both oldest
-- first. Of a message only what our header and all after it begin with, and nothing of one
-- without it, with an eta, or too long.
local HEADER_BYTES = 2048
local each, budget, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function routing(message)
  local first, eta = message:find('"eta": ', 1, true)
  local start = message:find('"owl": {', 1, true)
  if #message > longest or not first or not start or message:sub(eta + 1, eta + 4) ~= 'null' then
    return ''
  end
  return message:sub(start + 7, start + 6 + HEADER_BYTES)
end

-- One by one: LRANGE would copy all of them, however large they are.
local function look(list, index)
  if budget <= 0 then
    return ''
  end
  local message = redis.call('LINDEX', list, index)
  budget = budget - #message
  return routing(message)
end

local seen = {}
for _, list in ipairs(KEYS) do
  local length = redis.call('LLEN', list)
  local oldest, newest = {}, {}
  for position = 0, math.min(each, length) - 1 do
    oldest[#oldest + 1] = look(list, -1 - position)
  end
  for index = math.min(each, length - #oldest) - 1, 0, -1 do
    newest[#newest + 1] = look(list, index)
  end
  seen[#seen + 1] = {length, oldest, newest}
end
return seen
